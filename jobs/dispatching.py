"""Telling the workers of new jobs, beside the requests: no answer waits for the broker."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue

from jobs import leases
from jobs.database import Database
from jobs.errors import BrokerUnavailable
from jobs.queue import Queue

logger = logging.getLogger(__name__)

MOST_WAITING = 10_000
AT_ONCE = 100
GATHER_SECONDS = 0.05
"""What a job waits for others, as all of them are marked at once."""
STOP_SECONDS = 5.0


class Dispatcher:
    """One thread, from the first job on, that sends what it is handed. What it does not come to, the sweep of any
    process sends later."""

    def __init__(self, database: Database, queue: Queue) -> None:
        self._database, self._queue = database, queue
        self._handed: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self, job_id: str, device_class: str) -> None:
        """Soon, and never later than the sweep would."""
        if self._handed.qsize() < MOST_WAITING:
            self._handed.put((job_id, device_class))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Leave the rest to the sweep."""
        self._closed.set()
        self._handed.put(None)
        with self._lock:
            if self._thread is not None:
                self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._closed.is_set() and (first := self._handed.get()) is not None:
            self._closed.wait(GATHER_SECONDS)
            batch = [first]
            with suppress(Empty):
                while len(batch) < AT_ONCE and (more := self._handed.get_nowait()) is not None:
                    batch.append(more)
            try:
                tell(self._database, self._queue, batch)
            except BrokerUnavailable:
                logger.warning("%d jobs wait for the broker to come back", len(batch))
            except Exception:  # the database is away, or more than that: this thread goes on
                logger.warning("%d jobs wait for the sweep", len(batch), exc_info=True)


def tell(database: Database, queue: Queue, jobs: list[tuple[str, str]]) -> None:
    """Send jobs, by id and device class; raises BrokerUnavailable.

    They are marked first, as a worker that holds one back takes its mark away at once; what was not sent loses it too.
    """
    unsent = [id for id, _ in jobs]
    with database.writing() as session:
        leases.mark_sent(session, unsent)
    try:
        with queue.sending() as send:
            for id, device_class in jobs:
                send(id, device_class)
                unsent.remove(id)
    finally:
        if unsent:
            with database.writing() as session:
                leases.mark_unsent(session, unsent)
