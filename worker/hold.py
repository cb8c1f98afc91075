"""A claimed job in the hands of a worker: its lease is kept, and writes outlast the absence of the database."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from jobs import leases
from jobs.services import Services
from jobs.states import Status
from worker.drain import Drain

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

LONGEST_BEAT_SECONDS = 1.0
"""A cancelled job is noticed within this time."""
BEATS_PER_LEASE = 4


class Stopped(Exception):
    """The job was cancelled or its lease is lost."""


class Hold:
    """A context manager: renews the lease inside it; `must_stop` once the job is cancelled or the lease is lost."""

    def __init__(self, services: Services, lease: leases.Lease, drain: Drain) -> None:
        self.lease = lease
        self._drain = drain
        self.must_stop = False
        self._services = services
        self._seconds = services.settings.lease_seconds
        self._pause = min(LONGEST_BEAT_SECONDS, self._seconds / BEATS_PER_LEASE)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{lease.job_id}", daemon=True)

    def __enter__(self) -> Hold:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raise Stopped when the job must stop, Draining when the worker must let go of it."""
        if self.must_stop:
            raise Stopped
        self._drain.check()

    def write(self, action: Callable[[Session], Answer], *, though_stopped: bool = False) -> Answer:
        """Run `action` in a transaction, again and again while the database is away; raises Stopped when told to.

        When an answer is lost on its way `action` is run a second time, so it must bear that. `though_stopped` goes on
        for as long as a lease lasts.
        """
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                with self._services.database.writing() as session:
                    return action(session)
            except (OperationalError, InterfaceError) as error:
                logger.warning("the database is away: %s", type(error.orig).__name__)
                if though_stopped and time.monotonic() > deadline:
                    raise
            self._over.wait(self._pause)
            if self.must_stop and not though_stopped:
                raise Stopped

    def pause(self, seconds: float) -> None:
        """Wait, less if the job must stop."""
        deadline = time.monotonic() + seconds
        while not self.must_stop and time.monotonic() < deadline:
            self._over.wait(min(seconds, self._pause))

    def _beat(self) -> None:
        while not self._over.wait(self._pause):
            try:
                with self._services.database.writing() as session:
                    status = leases.renew(session, self.lease, self._seconds)
            except Exception:  # the database is away for a moment: the lease has slack, the next beat tries again
                logger.warning("a heartbeat failed", exc_info=True)
                continue
            self.must_stop = status != Status.RUNNING
