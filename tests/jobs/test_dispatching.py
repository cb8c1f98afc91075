"""Telling workers beside the requests: soon, marked as sent, and never in the way when the broker is away."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from jobs import dispatching, leases
from jobs.database import Database
from jobs.dispatching import fill
from jobs.errors import BrokerUnavailable
from jobs.queue import queue_of
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
    services.dispatcher.send("cpu")
    wait_for(lambda: services.queue.waiting("cpu") == JOBS)
    assert all(is_sent(services.database, job) for job in jobs)


def test_what_is_left_when_it_closes_is_sent_by_the_sweep(services: Services, jobs: list[str]) -> None:
    services.dispatcher.close()
    services.dispatcher.send("cpu")
    assert not is_sent(services.database, jobs[0])
    sweep(services)
    assert is_sent(services.database, jobs[0])
    assert services.queue.waiting("cpu") == JOBS


def test_a_queue_holds_what_workers_need_and_the_sweep_fills_it_up(
    services: Services, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "PLENTY", 3)
    services.dispatcher.send("cpu")
    wait_for(lambda: services.queue.waiting("cpu") == 3)
    sweep(services)
    assert [is_sent(services.database, job) for job in sorted(jobs)] == [True] * 3 + [False] * 2
    take_a_message(services)
    for _ in range(2):
        sweep(services)
    assert [is_sent(services.database, job) for job in sorted(jobs)] == [True] * 4 + [False]
    assert services.queue.waiting("cpu") == 3


def test_it_goes_on_when_the_broker_is_back(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [port] = free_ports(1)
    services = Services.open(settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{port}/0"}))
    dataset = add_dataset(services.database, tmp_path)
    job = add_job(services.database, dataset)
    services.dispatcher.send("cpu")
    wait_for(lambda: "wait for the broker" in caplog.text)
    assert not is_sent(services.database, job)
    with valkey(port):
        services.dispatcher.send("cpu")
        wait_for(lambda: services.queue.waiting("cpu") == 1)
        wait_for(lambda: is_sent(services.database, job))
    services.close()


def test_two_that_send_at_once_send_nothing_twice(services: Services, jobs: list[str]) -> None:
    def take(_: int) -> list[str]:
        with services.database.writing() as session:
            return leases.take_unsent(session, "cpu", JOBS)

    with ThreadPoolExecutor(4) as pool:
        taken = [job for ids in pool.map(take, range(4)) for job in ids]
    assert sorted(taken) == sorted(jobs)


def test_what_could_not_be_sent_loses_its_mark(
    services: Services, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    @contextmanager
    def sending() -> Iterator[Callable[[str, str], None]]:
        def send(job: str, _: str) -> None:
            if sent:
                raise BrokerUnavailable("Gone.")
            sent.append(job)

        yield send

    monkeypatch.setattr(services.queue, "sending", sending)
    with pytest.raises(BrokerUnavailable):
        fill(services.settings, services.database, services.queue, "cpu")
    assert [is_sent(services.database, job) for job in sorted(jobs)] == [True] + [False] * (JOBS - 1)


def test_the_mark_that_a_worker_takes_away_does_not_come_back(
    services: Services, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def sending() -> Iterator[Callable[[str, str], None]]:
        yield lambda job, _: hold_back(services.database, job)

    monkeypatch.setattr(services.queue, "sending", sending)
    fill(services.settings, services.database, services.queue, "cpu")
    assert not any(is_sent(services.database, job) for job in jobs)


def take_a_message(services: Services) -> None:
    """As a worker does; its job runs."""
    with redis.Redis.from_url(services.settings.broker_url) as broker:
        message = broker.rpop(queue_of("cpu"))
    [job], *_ = json.loads(base64.b64decode(json.loads(message)["body"]))
    with services.database.writing() as session:
        assert leases.claim(session, job, 30)


def hold_back(database: Database, job: str) -> None:
    """As a worker does when the job's key runs enough."""
    with database.writing() as session:
        leases.mark_unsent(session, [job])
