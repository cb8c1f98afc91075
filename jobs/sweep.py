"""What makes a lost message or a dead worker harmless: look again, every few seconds."""

from __future__ import annotations

from jobs import leases, leftovers, retention
from jobs.dispatching import fill
from jobs.services import Services


def sweep(services: Services) -> None:
    """Take back what died, let go of what is over, tell workers what waits, delete files that nobody needs.

    Safe to run anywhere, at any time, any number of times at once.
    """
    settings, database = services.settings, services.database
    with database.writing() as session:
        leases.take_back_dead(session, settings.max_attempts)
    with database.writing() as session:
        retention.expire(session)
    with database.reading() as session:
        classes = leases.waiting_classes(session)
    for device_class in classes:
        fill(settings, database, services.queue, device_class)
    leftovers.clear(database, services.storage)
