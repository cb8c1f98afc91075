"""The sweep against a real broker: what is lost is sent again, what waits is not sent twice."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from sqlalchemy import update

from jobs import leases
from jobs.clock import now
from jobs.dispatching import fill
from jobs.queue import queue_of
from jobs.services import Services
from jobs.settings import Settings
from jobs.sweep import sweep
from jobs.tables import Job
from tests.helpers import add_dataset, add_job, get_job, get_statuses


@pytest.fixture
def settings(settings: Settings, broker_url: str) -> Settings:
    return settings.model_copy(update={"broker_url": broker_url})


@pytest.fixture
def job(services: Services, tmp_path: Path) -> str:
    return add_job(services.database, add_dataset(services.database, tmp_path))


def run_sweep(services: Services) -> None:
    sweep(services)


def send(services: Services, id: str) -> None:
    fill(services.settings, services.database, services.queue, "cpu")
    assert get_job(services.database, id).sent_at is not None


def lose_messages(services: Services) -> None:
    with redis.Redis.from_url(services.settings.broker_url) as client:
        client.flushall()


def sent_long_ago(services: Services, id: str) -> None:
    long_ago = now() - timedelta(seconds=services.settings.resend_seconds + 1)
    with services.database.writing() as session:
        session.execute(update(Job).where(Job.id == id).values(sent_at=long_ago))


def test_a_job_whose_message_was_never_sent_is_sent(services: Services, job: str) -> None:
    run_sweep(services)
    assert services.queue.waiting("cpu") == 1
    assert get_job(services.database, job).sent_at is not None


def test_a_message_carries_the_job_id_and_nothing_else(services: Services, job: str) -> None:
    send(services, job)
    with redis.Redis.from_url(services.settings.broker_url, decode_responses=True) as client:
        [message] = client.lrange(queue_of("cpu"), 0, -1)
    assert json.loads(message)["headers"]["argsrepr"] == f"['{job}']"


def test_a_job_whose_message_was_lost_is_sent_again_after_a_while(services: Services, job: str) -> None:
    send(services, job)
    lose_messages(services)
    run_sweep(services)
    assert services.queue.waiting("cpu") == 0, "too early"
    sent_long_ago(services, job)
    run_sweep(services)
    assert services.queue.waiting("cpu") == 1


def test_waiting_messages_are_not_multiplied(services: Services, job: str) -> None:
    send(services, job)
    for _ in range(5):
        sent_long_ago(services, job)
        run_sweep(services)
    assert services.queue.waiting("cpu") == 1


def test_a_job_that_does_not_wait_is_not_sent(services: Services, job: str) -> None:
    with services.database.writing() as session:
        leases.claim(session, job, 30)
    run_sweep(services)
    assert services.queue.waiting("cpu") == 0


def test_a_job_of_a_dead_worker_is_sent_at_once(services: Services, job: str) -> None:
    with services.database.writing() as session:
        leases.claim(session, job, -1)
    run_sweep(services)
    assert get_statuses(services.database, job) == ["queued", "running", "queued"]
    assert services.queue.waiting("cpu") == 1
