"""The limit on running jobs: at the claim, under racing workers, and in what the sweep sends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import update

from jactus_core.errors import JactusError
from jobs import leases, limits, store
from jobs.database import Database
from jobs.keys import Caller, create_key, new_key
from jobs.services import Services
from jobs.settings import Settings
from jobs.states import Status
from jobs.sweep import sweep
from jobs.tables import Artifact, Dataset, Job
from tests.helpers import TENANT, add_dataset, add_job, get_job

WORKERS = 8
JOBS = 12


@pytest.fixture
def dataset(database: Database, tmp_path: Path) -> Dataset:
    return add_dataset(database, tmp_path)


def give_key(database: Database, dataset: Dataset, **own: int) -> None:
    """The key through which the dataset and its jobs are made."""
    with database.writing() as session:
        create_key(session, new_key(), "secret", dataset.tenant, limits=own, id=dataset.key_id)


def claim(database: Database, id: str, max_running: int = 0) -> leases.Lease | None:
    with database.writing() as session:
        return leases.claim(session, id, 30, max_running=max_running)


def unsent(database: Database, limit: int = 100) -> list[str]:
    """Which are sent now."""
    with database.writing() as session:
        return leases.take_unsent(session, "cpu", limit)


@pytest.mark.parametrize(("own", "default"), [({"max_running_jobs": 3}, 0), ({}, 3), ({"max_running_jobs": 3}, 1)])
def test_racing_workers_never_start_more_than_a_key_may_run(
    database: Database, dataset: Dataset, own: dict[str, int], default: int
) -> None:
    give_key(database, dataset, **own)
    ids = [add_job(database, dataset) for _ in range(JOBS)]

    with ThreadPoolExecutor(WORKERS) as pool:
        started = [lease for lease in pool.map(lambda id: claim(database, id, default), ids) if lease]

    assert len(started) == 3
    assert sum(get_job(database, id).status == Status.RUNNING for id in ids) == 3


def test_a_key_without_limit_runs_any_number(database: Database, dataset: Dataset) -> None:
    give_key(database, dataset, max_running_jobs=0)
    assert all(claim(database, add_job(database, dataset), max_running=1) for _ in range(3))


def test_a_stopping_job_still_takes_its_place(database: Database, dataset: Dataset) -> None:
    give_key(database, dataset, max_running_jobs=1)
    first, second = add_job(database, dataset), add_job(database, dataset)
    lease = claim(database, first)
    assert lease is not None
    with database.writing() as session:
        store.request_cancel(session, store.find(session, TENANT, first))
    assert claim(database, second) is None
    with database.writing() as session:
        assert leases.confirm_stopped(session, lease)
    assert claim(database, second) is not None


def test_a_job_held_back_is_sent_again_once_there_is_room_and_no_sooner(database: Database, dataset: Dataset) -> None:
    give_key(database, dataset, max_running_jobs=2)
    ids = sorted(add_job(database, dataset) for _ in range(5))
    assert unsent(database) == ids
    running = [claim(database, id) for id in ids[:2]]
    assert unsent(database) == [], "nobody was refused yet"

    assert [claim(database, id) for id in ids[2:]] == [None] * 3
    assert get_job(database, ids[2]).status == Status.QUEUED
    assert get_job(database, ids[2]).sent_at is None
    assert unsent(database) == [], "no room yet"

    assert running[0] is not None
    with database.writing() as session:
        assert leases.fail(session, running[0], JactusError("It broke."))
    assert unsent(database) == [ids[2]]
    assert claim(database, ids[2]) is not None


@pytest.mark.parametrize("free", [0, 1])
def test_a_key_with_many_jobs_holds_no_other_key_back(database: Database, dataset: Dataset, free: int) -> None:
    give_key(database, dataset, max_running_jobs=1 + free)
    running, *ours = sorted(add_job(database, dataset) for _ in range(6))
    assert claim(database, running)
    with database.writing() as session:
        other = session.merge(Dataset(**{**_columns(dataset), "id": "dataset_other", "key_id": "key_other"}))
    theirs = add_job(database, other)
    assert unsent(database, limit=2) == [*ours[:free], theirs]


def test_the_sweep_sends_what_was_held_back(settings: Settings, broker_url: str, tmp_path: Path) -> None:
    services = Services.open(settings.model_copy(update={"broker_url": broker_url, "max_running_jobs": 1}))
    dataset = add_dataset(services.database, tmp_path)
    give_key(services.database, dataset)
    first, second = add_job(services.database, dataset), add_job(services.database, dataset)
    lease = claim(services.database, first, 1)
    assert lease is not None
    assert claim(services.database, second, 1) is None

    sweep(services)
    assert services.queue.waiting("cpu") == 0
    with services.database.writing() as session:
        assert leases.succeed(session, lease, {}, [])
    sweep(services)
    assert services.queue.waiting("cpu") == 1
    services.close()


def test_what_a_key_keeps_is_counted_until_it_is_deleted(database: Database, dataset: Dataset) -> None:
    caller = Caller(TENANT, dataset.key_id)
    id = add_job(database, dataset)
    lease = claim(database, id)
    assert lease is not None
    with database.writing() as session:
        file = Artifact(job_id=id, path="model", bytes=10**10, sha256="", storage_key="")
        assert leases.succeed(session, lease, {}, [file])
    with database.reading() as session:
        assert limits.usage(session, caller).storage_bytes == dataset.bytes + 10**10
        assert limits.usage(session, Caller(TENANT, "key_other")).storage_bytes == 0
    with database.writing() as session:
        store.delete(session, store.find(session, TENANT, id))
        session.execute(update(Job).where(Job.id == id).values(result=None))
    with database.reading() as session:
        assert limits.usage(session, caller).storage_bytes == dataset.bytes


def _columns(row: Dataset) -> dict[str, object]:
    return {column.key: getattr(row, column.key) for column in Dataset.__table__.columns}
