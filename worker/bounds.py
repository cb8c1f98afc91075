"""What a run may use of time and disk, looked at again and again while it runs."""

from __future__ import annotations

import errno
import shutil
import time
from datetime import datetime
from pathlib import Path

from jactus_core.errors import JactusError
from jobs.clock import now

DISK_PAUSE_SECONDS = 2.0


class OutOfTime(JactusError):
    """The job's own max_runtime is over."""

    code = "max_runtime_exceeded"


class DiskFull(JactusError):
    """The worker's disk cannot hold the run."""

    code = "disk_full"

    def __init__(self, message: str = "The worker's disk is full; make room there, then retry the job.") -> None:
        super().__init__(message)


def is_disk_full(error: Exception) -> bool:
    """Whether the system refused to write for want of room."""
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


class Bounds:
    """Raises when the run goes beyond them."""

    def __init__(self, folder: Path, min_free_bytes: int, started_at: datetime, max_runtime: int | None) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._started_at = started_at
        self._max_runtime = max_runtime
        self._disk_looked_at = 0.0

    def check_room(self, needed_bytes: int) -> None:
        """Before the run: is there room for all of it?"""
        free = shutil.disk_usage(self._folder).free
        if free < needed_bytes + self._min_free_bytes:
            raise DiskFull(
                f"The job needs {needed_bytes:,} bytes of the worker's disk and {free:,} are free; make room there, "
                "then retry the job."
            )

    def check(self) -> None:
        """During the run. Raises OutOfTime or DiskFull."""
        if self._max_runtime is not None and (now() - self._started_at).total_seconds() > self._max_runtime:
            raise OutOfTime(f"The job ran longer than its max_runtime of {self._max_runtime} s.", "max_runtime")
        if time.monotonic() - self._disk_looked_at > DISK_PAUSE_SECONDS:
            self._disk_looked_at = time.monotonic()
            if shutil.disk_usage(self._folder).free < self._min_free_bytes:
                raise DiskFull
