"""Telling the workers what waits, the oldest first: beside the requests, so that no answer waits for the broker."""

from __future__ import annotations

import logging
import math
import threading

from jobs import leases
from jobs.database import Database
from jobs.errors import BrokerUnavailable
from jobs.queue import Queue
from jobs.settings import Settings

logger = logging.getLogger(__name__)

PLENTY = 20
"""Messages in a queue, at most; more jobs wait in the database. So a job that lost its worker waits for no more than
these, and whoever takes a message has the next one sent."""
GATHER_SECONDS = 0.05
"""What a job waits for others, as all of them are marked at once."""
STOP_SECONDS = 5.0


class Dispatcher:
    """One thread, from the first job on. What it does not come to, the sweep of any process does."""

    def __init__(self, settings: Settings, database: Database, queue: Queue) -> None:
        self._settings, self._database, self._queue = settings, database, queue
        self._lock = threading.Lock()
        self._classes: set[str] = set()
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self, device_class: str) -> None:
        """Tell workers of this class soon that a job waits."""
        with self._lock:
            self._classes.add(device_class)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
                self._thread.start()
        self._wanted.set()

    def close(self) -> None:
        """Leave the rest to the sweep."""
        self._closed.set()
        self._wanted.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while self._wanted.wait() and not self._closed.wait(GATHER_SECONDS):
            with self._lock:
                self._wanted.clear()
                classes, self._classes = self._classes, set()
            for device_class in classes:
                try:
                    fill(self._settings, self._database, self._queue, device_class)
                except BrokerUnavailable:
                    logger.warning("jobs wait for the broker to come back")
                except Exception:  # the database is away, or more than that: this thread goes on
                    logger.warning("jobs wait for the sweep", exc_info=True)


def fill(settings: Settings, database: Database, queue: Queue, device_class: str) -> None:
    """Send what waits for this class, the oldest first, until its queue has plenty; raises BrokerUnavailable.

    A queue with fewer messages than jobs were sent has lost some: those sent long ago are sent again. Jobs are marked
    first, as a worker that holds one back takes its mark away at once; what was not sent loses it too.
    """
    room = PLENTY - (messages := queue.waiting(device_class))
    if room <= 0:
        return
    with database.writing() as session:
        patience = settings.resend_seconds if messages < leases.count_sent(session, device_class) else math.inf
        unsent = leases.take_unsent(session, device_class, room, patience, settings.max_running_jobs)
    if not unsent:
        return
    try:
        with queue.sending() as send:
            for id in tuple(unsent):
                send(id, device_class)
                unsent.remove(id)
    finally:
        if unsent:
            with database.writing() as session:
                leases.mark_unsent(session, unsent)
