"""Two APIs and three workers are one service, whichever API a client asks, and while one of each is killed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2

from cli.client import ApiError, Client
from jobs import schemas
from tests.chaos.stack import (
    PATIENCE_SECONDS,
    Stack,
    assert_each_succeeded_once,
    assert_workers_leave_nothing,
    new_dataset,
    new_job,
    outcomes,
    small_job,
    stack,
)
from tests.chaos.test_faults import LONG, assert_nothing_else, wait_for_stage
from tests.helpers import API_KEY, get_events, wait_for
from tests.servers import S3, Postgres

WORKERS = 3
SILENCE_SECONDS = 60
NOTHING_LEFT = 204

Told = list[tuple[int, str]]
"""Number and type of events, in the order in which they came."""


def test_two_apis_and_three_workers_finish_every_job_exactly_once(
    tmp_path: Path, postgres_server: Postgres, s3_server: S3, tiny_bert: Path
) -> None:
    with (
        stack(tmp_path, postgres_server, s3_server, tiny_bert.parent) as running,
        running.client(0) as first,
        running.client(1) as second,
        ThreadPoolExecutor(32) as pool,
    ):
        clients = (first, second)
        told: dict[str, Told] = {}
        watching: list[Future[None]] = []

        def follow(job: str, replica: int) -> None:
            told[job] = []
            watching.append(pool.submit(watch, running, job, replica, told[job]))

        running.start_api(1)
        for _ in range(WORKERS):
            running.start_worker()

        jobs = list(pool.map(lambda number: new_job(clients[number % 2], tmp_path, LONG), range(WORKERS)))
        for number, job in enumerate(jobs):
            follow(job, 1 - number % 2)
        for job in jobs:
            wait_for_stage(running, job, "calibrating")
        wait_for(lambda: all(told.values()), 60, "an event in every stream")
        running.kill_api(1)
        running.kill_worker(running.workers[0])

        jobs.append(new_job(first, tmp_path))
        follow(jobs[-1], 1)
        assert {job.id for job in first.jobs()} == set(jobs)
        running.start_worker(machine=0)
        running.start_api(1)
        jobs.append(create_at_once(clients * 4, small_job(new_dataset(first, tmp_path))))
        follow(jobs[-1], 1)

        for watched in watching:
            watched.result(PATIENCE_SECONDS)
        assert_each_succeeded_once(running, jobs)
        ends = [outcome for job in jobs for outcome in outcomes(running, job)]
        assert ends.count("succeeded") == len(jobs)
        assert "lost" in ends  # by the worker that was killed
        for job in jobs:
            assert told[job] == [(number, type) for number, type, _ in get_events(running.database, job)]
        for client in clients:
            assert {job.id for job in client.jobs()} == set(jobs)
            for job in jobs:
                assert numbered(client.events(job)) == told[job]
        for number, job in enumerate(jobs[:WORKERS]):
            clients[1 - number % 2].download(job, tmp_path / job)  # which checks every hash
        assert_nothing_else(running, first, jobs)
        assert_workers_leave_nothing(running)


def watch(running: Stack, job: str, replica: int, told: Told) -> None:
    """Read every event at one replica; wherever a stream ends, ask the other one for the rest."""
    replicas = itertools.cycle((replica, 1 - replica))
    wait_for(lambda: _read_on(running, job, next(replicas), told), PATIENCE_SECONDS, f"the last event of {job}")


def _read_on(running: Stack, job: str, replica: int, told: Told) -> bool:
    """To the end of a stream; whether nothing was left to read."""
    last = told[-1][0] if told else 0
    headers = {"Authorization": f"Bearer {API_KEY}", "Accept": "text/event-stream", "Last-Event-ID": f"{last}"}
    url = f"{running.url(replica)}/v1/jobs/{job}/events"
    with (
        suppress(httpx2.TransportError),
        httpx2.stream("GET", url, headers=headers, timeout=SILENCE_SECONDS) as answer,
    ):
        if answer.raise_for_status().status_code == NOTHING_LEFT:
            return True
        for message in httpx2.EventSource(answer):
            told += numbered([schemas.EVENT.validate_json(message.data)])
    return False


def numbered(events: Iterable[schemas.Event]) -> Told:
    return [(event.number, event.type) for event in events]


def create_at_once(clients: Sequence[Client], request: schemas.JobCreate) -> str:
    """The same request under the same Idempotency-Key from all of them at the same moment: they get the same job."""
    together = threading.Barrier(len(clients))

    def create(client: Client) -> str:
        together.wait()
        return wait_for(lambda: _try_to_create(client, request), PATIENCE_SECONDS, "the job")

    with ThreadPoolExecutor(len(clients)) as pool:
        [job] = set(pool.map(create, clients))
    return job


def _try_to_create(client: Client, request: schemas.JobCreate) -> str:
    """Empty while somebody else's request is at work."""
    try:
        return client.create_job(request, "once").id
    except ApiError as error:
        if error.code != "idempotency_key_in_flight":
            raise
        return ""
