"""Telling workers beside the requests: soon, marked as sent, and never in the way when the broker is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs import leases
from jobs.database import Database
from jobs.dispatching import tell
from jobs.services import Services
from jobs.settings import Settings
from jobs.sweep import sweep
from tests.helpers import add_dataset, add_job, get_job, wait_for
from tests.servers import free_ports, valkey

JOBS = 5


@pytest.fixture
def settings(settings: Settings, database_url: str, broker_url: str) -> Settings:
    return settings.model_copy(update={"database_url": database_url, "broker_url": broker_url})


@pytest.fixture
def jobs(services: Services, tmp_path: Path) -> list[str]:
    dataset = add_dataset(services.database, tmp_path)
    return [add_job(services.database, dataset) for _ in range(JOBS)]


def is_sent(database: Database, id: str) -> bool:
    return get_job(database, id).sent_at is not None


def test_what_is_handed_over_is_sent_and_marked(services: Services, jobs: list[str]) -> None:
    for job in jobs:
        services.dispatcher.send(job, "cpu")
    wait_for(lambda: services.queue.waiting("cpu") == JOBS)
    assert all(is_sent(services.database, job) for job in jobs)


def test_what_is_left_when_it_closes_is_sent_by_the_sweep(services: Services, jobs: list[str]) -> None:
    services.dispatcher.close()
    services.dispatcher.send(jobs[0], "cpu")
    assert not is_sent(services.database, jobs[0])
    sweep(services)
    assert is_sent(services.database, jobs[0])
    assert services.queue.waiting("cpu") == JOBS


def test_it_goes_on_when_the_broker_is_back(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [port] = free_ports(1)
    services = Services.open(settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{port}/0"}))
    dataset = add_dataset(services.database, tmp_path)
    lost, found = (add_job(services.database, dataset) for _ in range(2))
    services.dispatcher.send(lost, "cpu")
    wait_for(lambda: "wait for the broker" in caplog.text)
    with valkey(port):
        services.dispatcher.send(found, "cpu")
        wait_for(lambda: services.queue.waiting("cpu") == 1)
    assert is_sent(services.database, found)
    assert not is_sent(services.database, lost)
    services.close()


def test_the_mark_that_a_worker_takes_away_does_not_come_back(
    services: Services, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def sending() -> Iterator[Callable[[str, str], None]]:
        yield lambda job, _: hold_back(services.database, job)

    monkeypatch.setattr(services.queue, "sending", sending)
    tell(services.database, services.queue, [(job, "cpu") for job in jobs])
    assert not any(is_sent(services.database, job) for job in jobs)


def hold_back(database: Database, job: str) -> None:
    """As a worker does when the job's key runs enough."""
    with database.writing() as session:
        leases.mark_unsent(session, [job])
