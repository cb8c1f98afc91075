"""A worker that is asked to end gives its runs a grace, then hands them back."""

from __future__ import annotations

import time


class Draining(Exception):
    """The grace is over; the job goes on elsewhere."""


class Drain:
    """Shared by all runs of a worker."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._deadline: float | None = None

    def begin(self) -> None:
        self._deadline = self._deadline or time.monotonic() + self._grace

    def check(self) -> None:
        """Raise Draining once the grace is over."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise Draining
