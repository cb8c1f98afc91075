"""`python -m worker`: a Celery worker that runs jobs. SIGTERM drains it; its slots are threads, each run a process."""

from __future__ import annotations

from threading import Thread
from typing import Any

from celery.signals import setup_logging, worker_shutting_down

from jobs import logs, tracing
from jobs.queue import RUN_TASK, make_celery, queue_of
from jobs.services import Services
from jobs.settings import Settings
from worker.child import Nursery
from worker.drain import Drain
from worker.folders import keep_tidy
from worker.supervisor import run_job

ALONE = ("--without-gossip", "--without-mingle", "--without-heartbeat")
"""Workers know the database, not each other."""

settings = Settings()
services = Services.open(settings)
drain = Drain(settings.drain_seconds)
nursery = Nursery(settings)
app = make_celery(settings)


@app.task(name=RUN_TASK)  # type: ignore[untyped-decorator]
def run(job_id: str) -> None:
    run_job(services, job_id, drain, nursery)
    nursery.prepare()


@setup_logging.connect  # type: ignore[untyped-decorator]
def set_up_logs(**_: Any) -> None:
    """Celery leaves logging alone where this signal is answered."""
    logs.set_up(settings)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def begin_to_drain(**_: Any) -> None:
    drain.begin()


if __name__ == "__main__":
    logs.set_up(settings)
    tracing.set_up(settings, "jactus-worker")
    Thread(target=keep_tidy, args=(services,), name="tidy", daemon=True).start()
    nursery.prepare()
    slots, queues = settings.worker_slots, ",".join(queue_of(name) for name in settings.worker_classes)
    try:
        app.worker_main(["worker", "--pool=threads", f"--concurrency={slots}", f"--queues={queues}", *ALONE])
    finally:
        nursery.close()
        tracing.shut_down()
