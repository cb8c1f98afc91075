"""A heartbeat in the background: keeps the lease, and notices when the job must stop."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from jobs import store
from jobs.services import Services
from jobs.states import Status

logger = logging.getLogger(__name__)
CANCEL_POLL_SECONDS = 1.0
BEATS_PER_LEASE = 4


class Heartbeat:
    """Renews `lease` until left; `must_stop` once the job is being cancelled or the lease is lost."""

    def __init__(self, services: Services, lease: store.Lease) -> None:
        self.must_stop = False
        self._services = services
        self._lease = lease
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{lease.job_id}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        seconds = self._services.settings.lease_seconds
        while not self._over.wait(min(CANCEL_POLL_SECONDS, seconds / BEATS_PER_LEASE)):
            try:
                with self._services.database.writing() as session:
                    status = store.renew(session, self._lease, seconds)
            except Exception:  # the database is away for a moment: the lease has slack, the next beat tries again
                logger.warning("heartbeat of %s failed", self._lease.job_id, exc_info=True)
                continue
            self.must_stop = status != Status.RUNNING
