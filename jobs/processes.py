"""Processes that talk over pipes, and ending their groups for certain. Needs the standard library only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import AnyStr, TextIO


def end_group(leader: subprocess.Popen[AnyStr], grace_seconds: float) -> None:
    """SIGTERM to the group that `leader` began, a grace for the leader, SIGKILL to whatever is left; reaps it."""
    _signal(leader, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        leader.wait(grace_seconds)
    _signal(leader, signal.SIGKILL)
    leader.wait()


def take_stdout() -> TextIO:
    """Keep the real standard output for messages; whatever libraries print goes to standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def log_to(file: Path) -> None:
    """From here on standard error goes to this file, and with it what libraries print."""
    with file.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())


def _signal(leader: subprocess.Popen[AnyStr], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, number)
