"""Jobs in the database: leases, retries, events and tenants, on SQLite and on PostgreSQL."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from jactus_core.errors import JactusError
from jobs import datasets, leases, store
from jobs.clock import now
from jobs.database import Database
from jobs.errors import NotFound, WrongState
from jobs.states import Status
from jobs.tables import Artifact, Dataset, Job
from tests.helpers import TENANT, add_dataset, add_job, get_events, get_job, get_statuses

THREADS = 8


@pytest.fixture
def dataset(database: Database, tmp_path: Path) -> Dataset:
    return add_dataset(database, tmp_path)


def claim(database: Database, id: str, lease_seconds: float = 30) -> leases.Lease:
    with database.writing() as session:
        lease = leases.claim(session, id, lease_seconds)
    assert lease is not None
    return lease


def take_back_dead(database: Database, max_attempts: int = 3) -> None:
    with database.writing() as session:
        leases.take_back_dead(session, max_attempts)


def cancel(database: Database, id: str) -> None:
    with database.writing() as session:
        store.request_cancel(session, store.find(session, TENANT, id))


def expire(database: Database, id: str) -> None:
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == id).values(lease_expires_at=now() - timedelta(seconds=1)))


def in_threads(work: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


def test_a_job_is_claimed_once_however_many_workers_want_it(database: Database, dataset: Dataset) -> None:
    ids = [add_job(database, dataset) for _ in range(20)]
    claimed: list[str] = []

    def claim_all(thread: int) -> None:
        for id in random.Random(thread).sample(ids, len(ids)):
            with database.writing() as session:
                if leases.claim(session, id, 30):
                    claimed.append(id)

    in_threads(claim_all)

    assert sorted(claimed) == sorted(ids)
    for id in ids:
        assert get_job(database, id).attempt == 1
        assert get_statuses(database, id) == ["queued", "running"]


def test_a_worker_that_was_given_up_for_dead_can_change_nothing(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    stale = claim(database, id)
    expire(database, id)
    take_back_dead(database)
    claim(database, id)
    before, events = store.describe(get_job(database, id)), get_events(database, id)

    with database.writing() as session:
        assert leases.renew(session, stale, 30) is None
        leases.record_progress(session, stale, "finetuning", 0.5, "of the stale worker")
        assert not leases.succeed(session, stale, {}, [_artifact(id)])
        assert not leases.fail(session, stale, JactusError("It broke."))
        assert not leases.confirm_stopped(session, stale)

    assert store.describe(get_job(database, id)) == before
    assert get_events(database, id) == events
    with database.reading() as session:
        assert store.artifacts(session, id) == []


def test_a_job_of_a_dead_worker_waits_again_as_if_new(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    lease = claim(database, id)
    with database.writing() as session:
        assert leases.take_unsent(session, "cpu", 1) == []
        leases.record_progress(session, lease, "finetuning", 0.5, "")
    started_at = get_job(database, id).started_at
    expire(database, id)

    take_back_dead(database)

    job = get_job(database, id)
    assert (job.status, job.stage, job.progress, job.sent_at) == (Status.QUEUED, None, 0.0, None)
    assert (job.lease_token, job.lease_expires_at) == (None, None)
    assert claim(database, id).attempt == 2
    assert get_job(database, id).started_at == started_at
    assert get_statuses(database, id) == ["queued", "running", "queued", "running"]


def test_a_job_under_which_every_worker_dies_fails_in_the_end(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    for _ in range(3):
        claim(database, id)
        expire(database, id)
        take_back_dead(database, max_attempts=3)

    job = get_job(database, id)
    assert job.status == Status.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    assert "3 times" in job.error["message"]
    assert job.finished_at is not None
    assert get_events(database, id)[-1][2] == {"status": "failed", "error": job.error}


def test_a_job_whose_worker_dies_while_stopping_is_cancelled(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    claim(database, id)
    cancel(database, id)
    expire(database, id)

    take_back_dead(database)

    assert get_job(database, id).status == Status.CANCELLED
    assert get_job(database, id).finished_at is not None


def test_a_job_whose_worker_lives_is_left_alone(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    lease = claim(database, id)
    expire(database, id)
    with database.writing() as session:
        assert leases.renew(session, lease, 30) == Status.RUNNING

    take_back_dead(database)

    assert get_statuses(database, id) == ["queued", "running"]


def test_sweeps_at_the_same_time_take_a_job_back_once(database: Database, dataset: Dataset) -> None:
    ids = [add_job(database, dataset) for _ in range(5)]
    for id in ids:
        claim(database, id)
        expire(database, id)

    in_threads(lambda _: take_back_dead(database))

    for id in ids:
        assert get_statuses(database, id) == ["queued", "running", "queued"]


def test_event_numbers_have_no_gap_and_no_twin_under_concurrent_writers(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    lease = claim(database, id)

    def report(thread: int) -> None:
        for step in range(10):
            with database.writing() as session:
                leases.record_progress(session, lease, "finetuning", step / 10, str(thread))

    in_threads(report)

    written = 2 + THREADS * 10
    assert [number for number, _, _ in get_events(database, id)] == list(range(1, written + 1))
    assert get_job(database, id).last_event == written


def test_a_waiting_job_is_cancelled_at_once(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    cancel(database, id)
    cancel(database, id)

    assert get_job(database, id).finished_at is not None
    assert get_statuses(database, id) == ["queued", "cancelled"]
    with database.writing() as session:
        assert leases.claim(session, id, 30) is None


def test_a_running_job_is_cancelled_through_its_worker(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    lease = claim(database, id)
    cancel(database, id)
    cancel(database, id)

    assert get_statuses(database, id) == ["queued", "running", "cancelling"]
    with database.writing() as session:
        assert leases.renew(session, lease, 30) == Status.CANCELLING
        assert not leases.succeed(session, lease, {}, [_artifact(id)])
        assert leases.confirm_stopped(session, lease)
    assert get_job(database, id).status == Status.CANCELLED
    with database.reading() as session:
        assert store.artifacts(session, id) == []


def test_cancelling_a_finished_job_is_refused_with_its_state(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    lease = claim(database, id)
    with database.writing() as session:
        assert leases.succeed(session, lease, {}, [])

    with pytest.raises(WrongState, match="succeeded already"):
        cancel(database, id)


def test_a_success_publishes_its_artifacts(database: Database, dataset: Dataset) -> None:
    id = add_job(database, dataset)
    lease = claim(database, id)
    with database.writing() as session:
        assert leases.succeed(session, lease, {"answer": 42}, [_artifact(id)])

    job = get_job(database, id)
    assert (job.status, job.result, job.lease_token) == (Status.SUCCEEDED, {"answer": 42}, None)
    with database.reading() as session:
        assert store.artifact(session, id, "model.safetensors").bytes == 3
        with pytest.raises(NotFound):
            store.artifact(session, id, "other")


def test_tenants_do_not_see_each_other(database: Database, dataset: Dataset, tmp_path: Path) -> None:
    theirs = add_dataset(database, tmp_path, tenant="them")
    their_job, my_job = add_job(database, theirs), add_job(database, dataset)

    with database.reading() as session:
        assert [job.id for job in store.list_jobs(session, TENANT)] == [my_job]
        assert [found.id for found in datasets.list_datasets(session, TENANT)] == [dataset.id]
        with pytest.raises(NotFound, match=their_job):
            store.find(session, TENANT, their_job)
        with pytest.raises(NotFound, match=theirs.id):
            datasets.find_dataset(session, TENANT, theirs.id)


def test_pages_of_jobs_are_whole_and_newest_first(database: Database, dataset: Dataset) -> None:
    ids = sorted((add_job(database, dataset) for _ in range(5)), reverse=True)
    cancel(database, ids[1])
    seen: list[str] = []
    with database.reading() as session:
        while page := store.list_jobs(session, TENANT, seen[-1] if seen else None, 2)[:2]:
            seen += [job.id for job in page]
        cancelled = store.list_jobs(session, TENANT, status=Status.CANCELLED)

    assert seen == ids
    assert [job.id for job in cancelled] == [ids[1]]


def _artifact(job_id: str) -> Artifact:
    return Artifact(job_id=job_id, path="model.safetensors", bytes=3, sha256="abc", storage_key="key")
