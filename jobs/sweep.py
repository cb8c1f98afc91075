"""What makes a lost message or a dead worker harmless: look again, every few seconds."""

from __future__ import annotations

import logging

from jobs import store
from jobs.database import Database
from jobs.queue import Queue
from jobs.settings import Settings

logger = logging.getLogger(__name__)


def sweep(settings: Settings, database: Database, queue: Queue) -> None:
    """Take back what died and send again what no worker was told of. Safe to run anywhere, at any time."""
    with database.writing() as session:
        store.take_back_dead(session, settings.max_attempts)
    with database.reading() as session:
        unsent = store.waiting_unsent(session, settings.resend_seconds)
    if unsent and queue.waiting() < len(unsent):
        for job_id in unsent:
            send(database, queue, job_id)


def send(database: Database, queue: Queue, job_id: str) -> None:
    """Tell the workers, then remember that they were told."""
    queue.send(job_id)
    with database.writing() as session:
        store.mark_sent(session, job_id)
