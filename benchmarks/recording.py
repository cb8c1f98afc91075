"""How every benchmark measures and keeps what it found."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).parent / "results"
SUMMARY = RESULTS / "summary.json"
README = Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"
METHOD_PAGE = DOCS / "method.md"
DEPLOY_PAGE = DOCS / "deploy.md"
WRITTEN = ("benchmarks/results", "docs", "README.md")
"""By benchmarks, in the repository."""
PACKAGES = ("torch", "transformers", "peft", "numpy")


def interleaved(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each action, all of them in turn, `repeats` times after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """Median over turns of ours by theirs; both of a turn met the same load of the machine."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def keep(name: str, content: Mapping[str, Any]) -> None:
    """Write `results/NAME.json` with where and with what it was measured."""
    write_result(RESULTS / f"{name}.json", content)


def peak_resident(action: Callable[[], object]) -> int:
    """Most bytes resident while `action` runs, looked at every millisecond."""
    process, done, highest = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.001):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    action()
    done.set()
    watcher.join()
    return highest[0]


def origin(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Where, when and with which code these were measured; here and now for none."""
    found = [*results] or [{"commit": commit(), "machine": machine(), "date": today()}]
    of = {key: sorted({str(result[key]) for result in found}) for key in ("commit", "machine", "date")}
    return {"commit": ", ".join(of["commit"]), "machine": "; ".join(of["machine"]), "date": of["date"][-1]}


def write_result(file: Path, content: Mapping[str, Any]) -> None:
    """Write one result whole, with where and with what it was measured."""
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {**content, "machine": machine(), "versions": versions(), "commit": commit(), "date": today()}
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    draft.replace(file)


def read_result(file: Path) -> dict[str, Any] | None:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def read_results(folder: Path) -> list[dict[str, Any]]:
    return [found for file in sorted(folder.glob("*.json")) if (found := read_result(file))]


def kept(name: str, part: str) -> dict[str, Any]:
    """What earlier runs wrote of a part of `results/NAME.json`, so that a benchmark can be run piece by piece."""
    found = read_result(RESULTS / f"{name}.json")
    return dict(found.get(part, {})) if found else {}


def read_summary() -> list[dict[str, Any]]:
    return list(json.loads(SUMMARY.read_text(encoding="utf-8"))) if SUMMARY.exists() else []


def summarize(
    id: str, metric: str, value: float, bound: str, holds: bool, command: str, results: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Replace this figure in the summary of all benchmarks; `results` are what it is made of, if not of this run."""
    row = {
        "id": id,
        "metric": metric,
        "value": round(value, 4),
        "bound": bound,
        "holds": holds,
        "command": command,
        **origin(results),
    }
    rows = sorted([*(old for old in read_summary() if old["id"] != id), row], key=lambda row: str(row["id"]))
    SUMMARY.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"{'ok  ' if holds else 'MISS'}  {id:<28} {value:8.3f}   {metric}, {bound}")


def fill(page: Path, marker: str, text: str) -> None:
    """Put a text between two markers of a page."""
    begin, end = _markers(marker)
    before, rest = page.read_text(encoding="utf-8").split(begin, 1)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def filled(page: Path, marker: str) -> str:
    """What stands between them."""
    begin, end = _markers(marker)
    return page.read_text(encoding="utf-8").split(begin, 1)[1].split(end, 1)[0].strip("\n")


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def machine() -> str:
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return f"{_processor()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {accelerator}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **versions_of(PACKAGES)}


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    return {package: version(package) for package in packages}


def commit() -> str:
    """The commit that was measured, marked when anything differs but results and pages: they are written meanwhile."""
    name = ["git", "rev-parse", "--short", "HEAD"]
    head = subprocess.run(name, capture_output=True, text=True, check=True)
    command = ["git", "diff", "--quiet", "HEAD", "--", ":(top)", *(f":(top,exclude){path}" for path in WRITTEN)]
    changed = subprocess.run(command, check=False).returncode
    return head.stdout.strip() + ("-dirty" if changed else "")


def today() -> str:
    return datetime.now(UTC).date().isoformat()
