"""The service's numbers, on both databases."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import update

from jactus_core.errors import JactusError
from jobs import leases, store
from jobs.clock import now
from jobs.database import Database
from jobs.metrics import ServiceMetrics
from jobs.tables import Artifact, Delivery, Event, Job, Webhook
from tests.helpers import TENANT, add_dataset, add_job

Numbers = dict[tuple[str, ...], float]


def numbers(database: Database) -> Numbers:
    """Value by name and label values."""
    with database.reading() as session:
        families = ServiceMetrics().read(session)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def claim(database: Database, job: str, seconds: float = 30) -> leases.Lease:
    with database.writing() as session:
        lease = leases.claim(session, job, seconds)
    assert lease is not None
    return lease


def test_jobs_are_counted_by_status_and_device_class(database: Database, tmp_path: Path) -> None:
    dataset = add_dataset(database, tmp_path)
    waiting = [add_job(database, dataset) for _ in range(3)]
    claim(database, waiting[0])
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == waiting[1]).values(device_class="gpu"))

    found = numbers(database)
    assert found["jactus_jobs", "running", "cpu"] == 1
    assert found["jactus_jobs", "queued", "cpu"] == found["jactus_queue_depth", "cpu"] == 1
    assert found["jactus_jobs", "queued", "gpu"] == found["jactus_queue_depth", "gpu"] == 1
    assert found["jactus_jobs", "failed", "gpu-large"] == found["jactus_queue_depth", "gpu-large"] == 0


def test_a_job_that_was_retried_waits_since_then(database: Database, tmp_path: Path) -> None:
    job = add_job(database, add_dataset(database, tmp_path))
    with database.writing() as session:
        session.execute(update(Event).where(Event.job_id == job).values(created_at=now() - timedelta(hours=2)))
    assert 7200 <= numbers(database)["jactus_queue_oldest_seconds", "cpu"] < 10_000

    with database.writing() as session:
        store.request_cancel(session, store.find(session, TENANT, job))
    assert numbers(database)["jactus_queue_oldest_seconds", "cpu"] == 0

    with database.writing() as session:
        store.retry(session, store.find(session, TENANT, job))
    assert 0 < numbers(database)["jactus_queue_oldest_seconds", "cpu"] < 3600


def test_what_runs_came_to_is_counted_for_ever(database: Database, tmp_path: Path) -> None:
    dataset = add_dataset(database, tmp_path)
    finished, dead = add_job(database, dataset), add_job(database, dataset)
    with database.writing() as session:
        leases.fail(session, claim(database, finished), JactusError("broken"), {"loading": 2.5, "calibrating": 4})
    claim(database, dead, seconds=-1)
    with database.writing() as session:
        leases.take_back_dead(session, max_attempts=1)
        store.delete(session, store.find(session, TENANT, finished))

    found = numbers(database)
    assert found["jactus_attempts_total", "failed"] == found["jactus_attempts_total", "lost"] == 1
    assert found["jactus_attempts_total", "succeeded"] == 0
    assert found["jactus_lease_expiries_total",] == 1
    assert found["jactus_stage_duration_seconds_count", "loading"] == 1
    assert found["jactus_stage_duration_seconds_sum", "loading"] == 2.5
    assert found["jactus_stage_duration_seconds_sum", "calibrating"] == 4


def test_bytes_of_what_is_deleted_do_not_count(database: Database, tmp_path: Path) -> None:
    dataset = add_dataset(database, tmp_path)
    jobs = [add_job(database, dataset) for _ in range(2)]
    for job in jobs:
        file = Artifact(job_id=job, path="model.safetensors", bytes=2**40, sha256="", storage_key=job)
        with database.writing() as session:
            assert leases.succeed(session, claim(database, job), {}, [file])
    assert numbers(database)["jactus_storage_bytes", "artifacts"] == 2 * 2**40
    assert numbers(database)["jactus_storage_bytes", "datasets"] == dataset.bytes

    with database.writing() as session:
        store.delete(session, store.find(session, TENANT, jobs[0]))
    assert numbers(database)["jactus_storage_bytes", "artifacts"] == 2**40


def test_deliveries_are_counted_by_state(database: Database) -> None:
    webhook = Webhook(
        id="webhook_1", tenant=TENANT, url="", events=[], description="", sealed_secret="", created_at=now()
    )
    with database.writing() as session:
        session.add(webhook)
        session.flush()
        for number, state in enumerate(["pending", "pending", "delivered"]):
            session.add(
                Delivery(
                    id=f"delivery_{number}",
                    webhook_id=webhook.id,
                    event="job.succeeded",
                    payload={},
                    state=state,
                    attempts=0,
                    created_at=now(),
                )
            )
    found = numbers(database)
    assert found["jactus_webhook_deliveries", "pending"] == 2
    assert found["jactus_webhook_deliveries", "delivered"] == 1
