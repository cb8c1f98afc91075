"""`python -m worker`: a Celery worker that runs jobs."""

from __future__ import annotations

import logging
from functools import cache

from jobs.queue import QUEUE, RUN_TASK, make_celery
from jobs.services import Services
from jobs.settings import Settings
from worker.supervisor import run_job

settings = Settings()
app = make_celery(settings)


@cache
def services() -> Services:
    """Opened in the pool's process, after the fork."""
    return Services.open(settings)


@app.task(name=RUN_TASK)  # type: ignore[untyped-decorator]
def run(job_id: str) -> None:
    run_job(services(), job_id)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    slots = str(settings.worker_slots)
    app.worker_main(["worker", "--pool=prefork", f"--concurrency={slots}", f"--queues={QUEUE}", "--loglevel=INFO"])
