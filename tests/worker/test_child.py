"""The protocol between the supervisor and its child process."""

from __future__ import annotations

import subprocess
import sys

from worker.pipeline import ORPHANED, Message

NOISY = """
    print("noise of Python", flush=True)
    os.write(1, b"noise of a C library\\n")
    subprocess.run(["echo", "noise of a child"])
    say("progress", stage="loading", fraction=1.0, note="half a line\\nand more")
    return {"answer": 42}
"""
SILENT = """
    say("progress", stage="loading", fraction=0.0, note="")
    time.sleep(1000)
"""
PIPELINE = """
import os, subprocess, sys, time
import worker.pipeline as pipeline

def run(specification, say):{body}
pipeline._run = run
sys.exit(pipeline.main())
"""
SPECIFICATION = (
    '{"model": "m", "revision": null, "model_root": "/", "dataset": "/d", "format": "csv",'
    ' "dataset_revision": null, "columns": {}, "output": "/o", "config": {}}\n'
)


def start(body: str) -> subprocess.Popen[str]:
    """The pipeline with another body of its run."""
    command = [sys.executable, "-c", PIPELINE.replace("{body}", body)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert child.stdin is not None
    child.stdin.write(SPECIFICATION)
    child.stdin.flush()
    return child


def test_what_libraries_print_does_not_disturb_the_messages() -> None:
    child = start(NOISY)
    assert child.wait(60) == 0
    lines, errors = (stream.readlines() for stream in (child.stdout, child.stderr) if stream)

    progress, result = (Message.model_validate_json(line) for line in lines)
    assert (progress.type, progress.data["note"]) == ("progress", "half a line\nand more")
    assert (result.type, result.data) == ("result", {"answer": 42})
    assert "".join(errors).count("noise") == 3


def test_a_child_whose_supervisor_is_gone_before_it_starts_ends() -> None:
    child = subprocess.run([sys.executable, "-m", "worker.pipeline"], input="", capture_output=True, timeout=60)
    assert child.returncode != 0
    assert child.stdout == b""


def test_a_child_whose_supervisor_is_gone_ends_in_the_middle_of_silent_work() -> None:
    child = start(SILENT)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    child.stdin.close()
    try:
        assert child.wait(30) == ORPHANED
    finally:
        child.kill()
