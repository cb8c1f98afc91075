"""What makes a lost message or a dead worker harmless: look again, every few seconds."""

from __future__ import annotations

import logging
from collections import defaultdict

from jobs import leases, leftovers, retention
from jobs.database import Database
from jobs.dispatching import tell
from jobs.queue import Queue
from jobs.services import Services

logger = logging.getLogger(__name__)


def sweep(services: Services) -> None:
    """Take back what died, send again what no worker was told of, delete what is over.

    Safe to run anywhere, at any time, any number of times at once.
    """
    settings, database = services.settings, services.database
    with database.writing() as session:
        leases.take_back_dead(session, settings.max_attempts)
    send_unsent(database, services.queue, settings.resend_seconds, settings.max_running_jobs)
    with database.writing() as session:
        retention.expire(session)
    leftovers.clear(database, services.storage)


def send_unsent(database: Database, queue: Queue, resend_seconds: float, max_running: int) -> None:
    """Send waiting jobs whose message was never sent, or long ago while the queue has fewer messages than jobs."""
    with database.reading() as session:
        unsent = leases.waiting_unsent(session, resend_seconds, max_running)
    by_class: dict[str, list[str]] = defaultdict(list)
    for job_id, device_class in unsent:
        by_class[device_class].append(job_id)
    for device_class, job_ids in by_class.items():
        if queue.waiting(device_class) < len(job_ids):
            tell(database, queue, [(job_id, device_class) for job_id in job_ids])
