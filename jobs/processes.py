"""Ending a process group for certain. Needs the standard library only."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from typing import AnyStr


def end_group(leader: subprocess.Popen[AnyStr], grace_seconds: float) -> None:
    """SIGTERM to the group that `leader` began, a grace for the leader, SIGKILL to whatever is left; reaps it."""
    _signal(leader, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        leader.wait(grace_seconds)
    _signal(leader, signal.SIGKILL)
    leader.wait()


def _signal(leader: subprocess.Popen[AnyStr], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, number)
