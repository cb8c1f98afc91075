"""One fault each, with real processes: every job ends as it should, once, and nothing is left behind.

`make chaos` looks at every stage; otherwise one stage stands for all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from cli.client import Client
from jobs import leases, schemas, store
from jobs.queue import Queue
from jobs.states import Status
from jobs.tables import Artifact, Leftover
from tests.chaos.stack import (
    RUN,
    Stack,
    assert_each_succeeded_once,
    flush,
    new_job,
    outcomes,
    stack,
    wait_until_final,
)
from tests.helpers import QUICK, descendants, get_events, get_job, wait_for
from tests.servers import S3, Postgres

FULL = os.environ.get("JACTUS_CHAOS") == "full"
STAGES = ("loading", "calibrating", "decomposing", "finetuning", "evaluating", "publishing")
SOME_STAGES = STAGES if FULL else ("finetuning",)
AWAY_SECONDS = 60 if FULL else 6
LONG = QUICK.model_copy(update={"epochs": 100, "warmup_epochs": 100})


@pytest.fixture
def running(tmp_path: Path, postgres_server: Postgres, s3_server: S3, tiny_bert: Path) -> Iterator[Stack]:
    with stack(tmp_path, postgres_server, s3_server, tiny_bert.parent) as running:
        yield running


@pytest.fixture
def client(running: Stack) -> Iterator[Client]:
    with running.client() as client:
        yield client


def wait_for_stage(running: Stack, job: str, stage: str) -> None:
    """Until the job has come to the stage, or past it: some stages are over in a moment."""

    def come_so_far() -> bool:
        return any(data.get("stage") == stage for _, _, data in get_events(running.database, job))

    wait_for(come_so_far, 120, f"stage {stage}")


def assert_succeeded_once(running: Stack, client: Client, job: str, folder: Path) -> schemas.Job:
    """One success, whole artifacts, gapless events, and nothing else: no process, no scratch space, no file."""
    done = assert_succeeded(running, client, job)
    client.download(job, folder / "download")  # which checks every hash
    assert_nothing_else(running, client, [job])
    return done


def assert_succeeded(running: Stack, client: Client, job: str) -> schemas.Job:
    """Once, whatever else there is."""
    done = wait_until_final(client, job)
    assert done.status == Status.SUCCEEDED, done.error
    assert_each_succeeded_once(running, [job])
    return done


def assert_nothing_else(running: Stack, client: Client, jobs: list[str], ready: int = 0) -> None:
    """In storage: the datasets, the published artifacts and the logs. No process but those that are kept ready."""
    wait_for(lambda: len(running.processes(RUN)) == ready, 30, "the end of every run")
    wait_for(lambda: _leftovers(running) == 0, 60, "the sweep's cleaning")
    expected = {artifact.storage_key for job in jobs for artifact in _artifacts(running, job)}
    stored = {key for key in running.storage.keys_under("jobs") if "/logs/" not in key}
    assert stored == expected


def _leftovers(running: Stack) -> int:
    with running.database.reading() as session:
        return len(session.scalars(select(Leftover)).all())


def _artifacts(running: Stack, job: str) -> list[Artifact]:
    with running.database.reading() as session:
        return store.artifacts(session, job)


@pytest.mark.parametrize("stage", SOME_STAGES)
def test_a_killed_worker_costs_a_stage_not_the_job(running: Stack, client: Client, stage: str, tmp_path: Path) -> None:
    worker = running.start_worker()
    job = new_job(client, tmp_path, LONG)
    wait_for_stage(running, job, stage)
    running.kill_worker(worker)
    running.start_worker()
    assert assert_succeeded_once(running, client, job, tmp_path).attempt <= 2


@pytest.mark.parametrize("stage", SOME_STAGES)
def test_a_killed_run_is_made_again(running: Stack, client: Client, stage: str, tmp_path: Path) -> None:
    running.start_worker()
    job = new_job(client, tmp_path, LONG)
    wait_for_stage(running, job, stage)
    for child in descendants(RUN):
        child.kill()
    assert assert_succeeded_once(running, client, job, tmp_path).attempt <= 2


@pytest.mark.parametrize("stage", SOME_STAGES)
def test_a_killed_api_loses_no_event(running: Stack, client: Client, stage: str, tmp_path: Path) -> None:
    running.start_worker()
    job = new_job(client, tmp_path, LONG)
    seen = []
    for event in client.events(job):
        seen.append(event.number)
        if event.type == "progress" and event.data.stage == stage:
            break
    running.kill_api()
    running.start_api()
    seen += [event.number for event in client.events(job, after=seen[-1])]
    assert seen == list(range(1, len(seen) + 1))
    assert_succeeded_once(running, client, job, tmp_path)


def test_a_broker_that_is_killed_and_comes_back_empty_loses_no_job(
    running: Stack, client: Client, tmp_path: Path
) -> None:
    jobs = [new_job(client, tmp_path) for _ in range(3)]
    running.broker.end(signal.SIGKILL)
    jobs.append(new_job(client, tmp_path))  # accepted though nobody can be told
    running.broker.start()
    running.start_worker()
    wait_for(lambda: any(get_job(running.database, job).status != Status.QUEUED for job in jobs), 60)
    flush(running.settings.broker_url)
    for job in jobs:
        assert_succeeded(running, client, job)


def test_a_database_that_restarts_during_a_run_costs_nothing(
    running: Stack, client: Client, tmp_path: Path, postgres_server: Postgres
) -> None:
    running.start_worker()
    job = new_job(client, tmp_path, LONG)
    wait_for_stage(running, job, "finetuning")
    postgres_server.server.end(signal.SIGKILL)
    postgres_server.server.start()
    assert_succeeded_once(running, client, job, tmp_path)


def test_a_publication_outlasts_a_storage_that_is_away(running: Stack, client: Client, tmp_path: Path) -> None:
    running.start_worker()
    job = new_job(client, tmp_path, LONG)
    wait_for_stage(running, job, "finetuning")
    with running.s3.paused():
        time.sleep(AWAY_SECONDS)  # the length of the outage, not a wait for something
    assert assert_succeeded_once(running, client, job, tmp_path).attempt == 1


def test_two_workers_and_many_messages_make_one_run(running: Stack, client: Client, tmp_path: Path) -> None:
    job = new_job(client, tmp_path)
    with Queue(running.settings).sending() as send:
        for _ in range(20):
            send(job, "cpu")
    running.start_worker(worker_slots=2)
    running.start_worker(worker_slots=2)
    assert assert_succeeded_once(running, client, job, tmp_path).attempt == 1


def test_a_worker_that_wakes_up_after_losing_its_lease_changes_nothing(
    running: Stack, client: Client, tmp_path: Path
) -> None:
    stale = running.start_worker()
    job = new_job(client, tmp_path, LONG)
    wait_for_stage(running, job, "finetuning")
    children = descendants(RUN)
    os.killpg(stale.pid, signal.SIGSTOP)
    for child in children:
        child.suspend()
    running.start_worker()
    wait_for(lambda: get_job(running.database, job).attempt == 2, 60, "the second attempt")
    os.killpg(stale.pid, signal.SIGCONT)
    for child in children:
        child.resume()
    assert assert_succeeded_once(running, client, job, tmp_path).attempt == 2


def test_a_worker_that_is_asked_to_end_hands_its_job_on(running: Stack, client: Client, tmp_path: Path) -> None:
    worker = running.start_worker()
    job = new_job(client, tmp_path, LONG)
    wait_for_stage(running, job, "finetuning")
    worker.terminate()
    worker.wait(30)
    assert get_job(running.database, job).status == Status.QUEUED
    running.start_worker()
    assert_succeeded_once(running, client, job, tmp_path)
    assert outcomes(running, job) == ["released", "succeeded"]


@pytest.mark.parametrize("stage", SOME_STAGES)
def test_a_cancelled_job_frees_its_slot_within_ten_seconds(
    running: Stack, client: Client, stage: str, tmp_path: Path
) -> None:
    running.start_worker()
    job = new_job(client, tmp_path, LONG)
    wait_for_stage(running, job, stage)
    client.cancel(job)
    wait_for(lambda: get_job(running.database, job).status == Status.CANCELLED, 10, "the cancellation")
    assert_nothing_else(running, client, [job])
    assert_succeeded_once(running, client, new_job(client, tmp_path), tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk is made by mounting a small one, which needs root")
def test_a_full_disk_fails_the_job_with_a_remedy(running: Stack, client: Client, tmp_path: Path) -> None:
    small = tmp_path / "machine-0"
    small.mkdir()
    mounted = subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        running.start_worker(min_free_disk_bytes=0)
        job = new_job(client, tmp_path)
        done = wait_until_final(client, job)
        assert done.status == Status.FAILED
        assert done.error is not None
        assert done.error.code == "disk_full"
        assert_nothing_else(running, client, [job])
    finally:
        running.kill_worker(running.workers[0])
        subprocess.run(["/bin/umount", str(small)], check=True)


def test_a_run_out_of_memory_fails_with_a_remedy(running: Stack, client: Client, tmp_path: Path) -> None:
    running.start_worker(max_attempts=2)
    job = new_job(client, tmp_path, LONG)
    for attempt in (1, 2):
        wait_for(lambda attempt=attempt: get_job(running.database, job).attempt == attempt, 60)  # type: ignore[misc]
        wait_for_child_of(attempt)
    done = wait_until_final(client, job)
    assert done.error is not None
    assert done.error.code == "out_of_memory"
    assert leases.files_of(job, 1) not in " ".join(running.storage.keys_under("jobs"))


def wait_for_child_of(attempt: int) -> None:
    """Do to the run what the kernel does when memory runs out."""
    [child] = wait_for(lambda: descendants(RUN), 60, f"the run of attempt {attempt}")
    child.kill()
    child.wait()
