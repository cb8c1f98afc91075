"""Every result names the code that it was measured with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.recording import commit, origin


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


def test_a_figure_comes_from_where_its_results_were_measured_and_is_as_old_as_the_newest() -> None:
    def result(commit: str, date: str) -> dict[str, str]:
        return {"commit": commit, "machine": "two cores", "date": date, "experiment": "one"}

    found = origin([result("b", "2026-02-01"), result("a", "2026-03-01"), result("b", "2026-01-01")])

    assert found == {"commit": "a, b", "machine": "two cores", "date": "2026-03-01"}
    assert origin([]).keys() == found.keys()
