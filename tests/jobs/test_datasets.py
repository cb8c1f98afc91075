"""Deleting datasets while jobs are made of them, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import select

from jobs import datasets, schemas, store
from jobs.database import Database
from jobs.errors import InUse, NotFound
from jobs.keys import Caller
from jobs.tables import Dataset, Leftover
from tests.helpers import QUICK, TENANT, add_dataset, add_job

ROUNDS = 20


def delete(database: Database, id: str) -> str:
    """What became of it."""
    with database.writing() as session:
        try:
            datasets.delete_dataset(session, datasets.find_dataset(session, TENANT, id))
        except (InUse, NotFound) as error:
            return error.code
    return "deleted"


def create(database: Database, id: str) -> str:
    request = schemas.JobCreate(model="tiny-bert", dataset=id, budgets=(0.8,), hyperparameters=QUICK)
    with database.writing() as session:
        try:
            dataset = datasets.find_dataset(session, TENANT, id, keep=True)
        except NotFound as error:
            return error.code
        store.create(session, Caller(TENANT, "key_tests"), request, dataset)
    return "created"


@pytest.fixture
def dataset(database: Database, tmp_path: Path) -> Dataset:
    return add_dataset(database, tmp_path)


def test_a_dataset_goes_with_its_file_and_only_once(database: Database, dataset: Dataset) -> None:
    assert delete(database, dataset.id) == "deleted"
    assert delete(database, dataset.id) == "dataset_not_found"
    with database.reading() as session:
        assert list(session.scalars(select(Leftover.prefix))) == [datasets.folder_of(dataset.id)]
        assert datasets.list_datasets(session, TENANT) == []


def test_a_dataset_that_a_live_job_needs_stays(database: Database, dataset: Dataset) -> None:
    job = add_job(database, dataset)
    assert delete(database, dataset.id) == "in_use"
    with database.writing() as session:
        store.request_cancel(session, store.find(session, TENANT, job))
    assert delete(database, dataset.id) == "deleted"


def test_no_job_slips_in_while_its_dataset_is_deleted(database: Database, tmp_path: Path) -> None:
    barrier = Barrier(2)
    ids = [add_dataset(database, tmp_path, rows=4).id for _ in range(ROUNDS)]

    def at_once(work: Callable[[Database, str], str], id: str) -> str:
        barrier.wait()
        return work(database, id)

    with ThreadPoolExecutor(2) as pool:
        for id in ids:
            outcome = tuple(future.result() for future in [pool.submit(at_once, work, id) for work in (create, delete)])
            assert outcome in {("created", "in_use"), ("dataset_not_found", "deleted")}


def test_a_dataset_is_deleted_once_however_many_ask(database: Database, dataset: Dataset) -> None:
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: delete(database, dataset.id), range(8)))
    assert sorted(outcomes) == ["dataset_not_found"] * 7 + ["deleted"]
