"""Commands in a row that must all succeed, and what they were for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def run(*command: str, **options: Any) -> str:
    """What the command prints; ends the check when it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    require(ended.returncode == 0, f"{' '.join(command)[:200]}\n{ended.stdout[-2000:]}{ended.stderr[-4000:]}")
    return ended.stdout


def succeeds(*command: str | Path, **options: Any) -> bool:
    return subprocess.run(command, check=False, **options).returncode == 0


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"✗ {otherwise}")


def report(what: str) -> None:
    print(f"✓ {what}", flush=True)  # noqa: T201 - its only output
