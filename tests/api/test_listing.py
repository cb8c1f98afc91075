"""Lists of jobs: filters on both databases, and queries that never read the whole table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, text, update
from sqlalchemy.orm import Session

from api.app import create_app
from jobs import leases, retention, store
from jobs.clock import now
from jobs.database import Database, make_engine
from jobs.states import Status
from jobs.tables import Dataset, Job
from tests.api.requests import assert_refused
from tests.helpers import NOBODY_LISTENS, TENANT, add_dataset, add_job, make_settings, signed_in

MANY = 20_000


@pytest.fixture
def client(tmp_path: Path, database_url: str) -> Iterator[TestClient]:
    """The application on either database."""
    settings = make_settings(tmp_path, database_url=database_url, broker_url=NOBODY_LISTENS)
    with TestClient(create_app(settings)) as client:
        yield signed_in(client)


@pytest.fixture
def dataset(database: Database, tmp_path: Path) -> Dataset:
    return add_dataset(database, tmp_path, 20)


def add(database: Database, dataset: Dataset, **fields: Any) -> str:
    """A job with other fields than usual."""
    id = add_job(database, dataset)
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == id).values(**fields))
    return id


def listed(client: TestClient, **params: Any) -> list[str]:
    answer = client.get("/v1/jobs", params=params)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


def test_lists_are_filtered_by_metadata(client: TestClient, database: Database, dataset: Dataset) -> None:
    red = add(database, dataset, user_metadata={"colour": "red", "a.b": "1", "said": "x:y"})
    blue = add(database, dataset, user_metadata={"colour": "blue", "a.b": "1"})
    add(database, dataset, user_metadata={})
    assert listed(client, metadata="colour:red") == [red]
    assert sorted(listed(client, metadata="a.b:1")) == sorted([red, blue])
    assert listed(client, metadata=["a.b:1", "colour:blue"]) == [blue]
    assert listed(client, metadata=["colour:red", "colour:blue"]) == []
    assert listed(client, metadata="said:x:y") == [red]
    assert listed(client, metadata="colour:") == []
    assert listed(client, metadata="Colour:red") == []


@pytest.mark.parametrize("value", ["' OR 1=1 --", '"', "%", "_ed", "\\", "ünïcode 🙂", "null", "1", "$.colour"])
def test_a_filter_means_what_it_says(client: TestClient, database: Database, dataset: Dataset, value: str) -> None:
    wanted = add(database, dataset, user_metadata={"colour": value}, model=value)
    add(database, dataset, user_metadata={"colour": "red"}, model="red")
    assert listed(client, metadata=f"colour:{value}") == [wanted]
    assert listed(client, model=value) == [wanted]


@pytest.mark.parametrize("given", ["colour", "", ":red", "a b:red", "'):x", 'a"b:x', "a[0]:x", f"{'k' * 65}:x"])
def test_a_filter_that_names_no_key_is_refused(client: TestClient, given: str) -> None:
    assert_refused(client.get("/v1/jobs", params={"metadata": given}), 422, "invalid_parameter", "metadata")


def test_filters_and_pages_go_together(client: TestClient, database: Database, dataset: Dataset) -> None:
    ids = sorted((add(database, dataset, model="small") for _ in range(5)), reverse=True)
    add(database, dataset, model="large")
    add(database, dataset, model="small", status=Status.FAILED)
    params = {"model": "small", "status": "queued", "limit": 2}
    first, second, third = (listed(client, **params, **after) for after in ({}, {"after": ids[1]}, {"after": ids[3]}))
    assert [first, second, third] == [ids[:2], ids[2:4], ids[4:]]


def test_lists_are_filtered_by_time(client: TestClient, database: Database, dataset: Dataset) -> None:
    noon = now().replace(hour=12, microsecond=0)
    old, new = (add(database, dataset, created_at=noon + timedelta(hours=hours)) for hours in (-1, 1))
    here = noon.isoformat()
    elsewhere = datetime.fromisoformat(here.replace("+00:00", "+09:00")) + timedelta(hours=9)
    for moment in (here, elsewhere.isoformat()):
        assert listed(client, created_after=moment) == [new]
        assert listed(client, created_before=moment) == [old]
    assert listed(client, created_after=here, created_before=here) == []


@pytest.mark.parametrize("moment", ["yesterday", "2026-01-01T00:00:00", ""])
def test_a_time_without_its_zone_is_refused(client: TestClient, moment: str) -> None:
    answer = client.get("/v1/jobs", params={"created_after": moment})
    assert_refused(answer, 422, "invalid_parameter", "created_after")


@pytest.fixture
def crowded(postgresql_url: str, tmp_path: Path) -> Iterator[Engine]:
    """Many jobs, most of them over, of a few tenants."""
    database = Database(postgresql_url)
    add_job(database, add_dataset(database, tmp_path, 20))
    database.close()
    chosen = {
        "id": "'job_' || lpad(to_hex(n), 28, '0')",
        "tenant": f"CASE n % 5 WHEN 0 THEN '{TENANT}' ELSE 'tenant-' || n % 5 END",
        "status": "(ARRAY['queued', 'running', 'cancelling', 'failed'])[1 + (n / 200) % 4]",
        "lease_expires_at": "CASE n % 200 WHEN 0 THEN now() + interval '1 hour' END",
        "expires_at": "now() + n * interval '1 minute'",
        "deleted_at": "CASE n % 50 WHEN 0 THEN now() END",
    }
    chosen["status"] = f"CASE n % 200 WHEN 0 THEN {chosen['status']} ELSE 'succeeded' END"
    columns = Job.__table__.columns.keys()
    values = ", ".join(chosen.get(name, f"jobs.{name}") for name in columns)
    engine = make_engine(postgresql_url)
    with engine.begin() as connection:
        rows = f"SELECT {values} FROM jobs, generate_series(1, {MANY}) AS n"  # noqa: S608 - of this test's own words
        connection.execute(text(f"INSERT INTO jobs ({', '.join(columns)}) {rows}"))
        connection.execute(text("ANALYZE jobs"))
    yield engine
    engine.dispose()


QUERIES: dict[str, Callable[[Session], object]] = {
    "a tenant's list": lambda session: store.list_jobs(session, TENANT),
    "its next page": lambda session: store.list_jobs(session, TENANT, after=f"job_{'0' * 24}3000"),
    "a tenant's list by status": lambda session: store.list_jobs(session, TENANT, status=Status.FAILED),
    "a tenant's list by a status of most jobs": lambda session: store.list_jobs(
        session, TENANT, status=Status.SUCCEEDED
    ),
    "the sweep for dead workers": lambda session: leases.take_back_dead(session, 3),
    "the sweep for who waits": leases.waiting_classes,
    "the sweep for how many were sent": lambda session: leases.count_sent(session, "cpu"),
    "the sweep for lost messages": lambda session: leases.take_unsent(session, "cpu", 200, 60),
    "the sweep for what is over": retention.expire,
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_no_query_reads_all_jobs(crowded: Engine, query: Callable[[Session], object]) -> None:
    asked: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, ___: Any, ____: Any) -> None:
        asked.append((statement, parameters))

    with Session(crowded) as session:
        event.listen(crowded, "before_cursor_execute", note)
        query(session)
        event.remove(crowded, "before_cursor_execute", note)
        session.rollback()
        explain = [session.connection().exec_driver_sql(f"EXPLAIN {said}", given) for said, given in asked]
        plans = "\n".join(row[0] for plan in explain for row in plan)
    assert "Index" in plans
    assert "Seq Scan on jobs" not in plans, plans
