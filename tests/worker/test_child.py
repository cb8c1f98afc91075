"""The protocol between the supervisor and its child process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers import descendants, make_settings, wait_for
from worker.child import Nursery
from worker.pipeline import ORPHANED, Message, Specification

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


def start(body: str, log: Path) -> subprocess.Popen[str]:
    """The pipeline with another body of its run."""
    command = [sys.executable, "-c", PIPELINE.replace("{body}", body)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert child.stdin is not None
    child.stdin.write(specification(log).model_dump_json() + "\n")
    child.stdin.flush()
    return child


def specification(log: Path) -> Specification:
    """Of a model that is nowhere."""
    given = {"model": "m", "revision": None, "model_root": log.parent, "dataset": str(log), "format": "jsonl"}
    return Specification.model_validate(
        {**given, "dataset_revision": None, "columns": {}, "output": log.parent, "log": log, "config": {}}
    )


def test_what_libraries_print_does_not_disturb_the_messages(tmp_path: Path) -> None:
    child = start(NOISY, tmp_path / "log")
    assert child.wait(60) == 0
    assert child.stdout is not None

    progress, result = (Message.model_validate_json(line) for line in child.stdout)
    assert (progress.type, progress.data["note"]) == ("progress", "half a line\nand more")
    assert (result.type, result.data) == ("result", {"answer": 42})
    assert (tmp_path / "log").read_text().count("noise") == 3


def test_a_child_that_is_ready_takes_the_next_run_and_is_replaced_when_it_is_dead(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, warm_start=True, cancel_grace_seconds=1)
    nursery = Nursery(settings)
    try:
        nursery.prepare()
        [ready] = wait_for(lambda: descendants("worker.pipeline"))
        nursery.prepare()
        assert descendants("worker.pipeline") == [ready]
        with nursery.take() as child:
            assert descendants("worker.pipeline") == [ready]
            message, *_ = filter(None, child.run(specification(tmp_path / "log")))
            assert (message.type, message.data["code"]) == ("error", "model_not_found")
            assert child.exit_code() == 1
        assert "ModelNotFound" in (tmp_path / "log").read_text()

        nursery.prepare()
        [dead] = wait_for(lambda: descendants("worker.pipeline"))
        dead.kill()
        dead.wait()
        with nursery.take() as child:
            assert child.is_alive()
        nursery.prepare()
    finally:
        nursery.close()
    assert descendants("worker.pipeline") == []


def test_nothing_is_kept_ready_where_the_settings_say_no(tmp_path: Path) -> None:
    nursery = Nursery(make_settings(tmp_path, warm_start=False))
    nursery.prepare()
    assert descendants("worker.pipeline") == []


def test_a_child_whose_supervisor_is_gone_before_it_starts_ends() -> None:
    child = subprocess.run([sys.executable, "-m", "worker.pipeline"], input=b"", capture_output=True, timeout=60)
    assert (child.returncode, child.stdout) == (ORPHANED, b"")


def test_a_child_whose_supervisor_is_gone_ends_in_the_middle_of_silent_work(tmp_path: Path) -> None:
    child = start(SILENT, tmp_path / "log")
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    child.stdin.close()
    try:
        assert child.wait(30) == ORPHANED
    finally:
        child.kill()
