"""Every result names the code that it was measured with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.recording import commit


def git(*arguments: str) -> str:
    command = ["git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_results_that_are_written_meanwhile_do_not_change_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, result = tmp_path / "jactus_core" / "method.py", tmp_path / "benchmarks" / "results" / "one.json"
    for file in (code, result):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    head = git("rev-parse", "--short", "HEAD")

    result.unlink()
    monkeypatch.chdir(code.parent)
    assert commit() == head

    code.write_text("2")
    assert commit() == f"{head}-dirty"
