"""Many jobs from several clients while workers are killed at random: each is finished exactly once.

`make chaos` runs 200 jobs and writes what it found to `benchmarks/results/chaos.json`; otherwise a few jobs.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest

from benchmarks.recording import keep, summarize
from tests.chaos.stack import (
    Stack,
    assert_each_succeeded_once,
    assert_workers_leave_nothing,
    new_job,
    stack,
    wait_until_final,
)
from tests.chaos.test_faults import assert_nothing_else
from tests.helpers import get_job, get_statuses
from tests.servers import S3, Postgres

FULL = os.environ.get("JACTUS_CHAOS") == "full"
CLIENTS = 8
JOBS_PER_CLIENT = 25 if FULL else 1
WORKERS = 2
KILL_EVERY_SECONDS = (20, 40) if FULL else (10, 20)
MOST_KILLS = 1000 if FULL else 3
"""A run must get to the end of a stage between two of them, or nothing would ever come of it."""
SEED = 7
LONGEST_SECONDS = 3600


class Killer(threading.Thread):
    """Kills a worker now and then, and starts it again on the same machine, for as long as it is entered."""

    def __init__(self, running: Stack) -> None:
        super().__init__(name="killer")
        self._running = running
        self._random = random.Random(SEED)
        self._over = threading.Event()
        self.kills = 0

    def run(self) -> None:
        while self.kills < MOST_KILLS and not self._over.wait(self._random.uniform(*KILL_EVERY_SECONDS)):
            machine = self._random.randrange(WORKERS)
            self._running.kill_worker(self._running.workers[machine])
            self._running.start_worker(machine=machine, warm_start=True)
            self.kills += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


@pytest.mark.timeout(LONGEST_SECONDS)
def test_every_job_is_finished_exactly_once_while_workers_die(
    tmp_path: Path, postgres_server: Postgres, s3_server: S3, tiny_bert: Path
) -> None:
    with stack(tmp_path, postgres_server, s3_server, tiny_bert.parent) as running:
        for machine in range(WORKERS):
            running.start_worker(machine=machine, warm_start=True)

        def create_and_wait(client_number: int) -> list[str]:
            with running.client() as client:
                jobs = [new_job(client, tmp_path) for _ in range(JOBS_PER_CLIENT)]
                for job in jobs:
                    wait_until_final(client, job, LONGEST_SECONDS)  # one may be killed many times
                return jobs

        with Killer(running) as killer, ThreadPoolExecutor(CLIENTS) as pool:
            jobs = [job for created in pool.map(create_and_wait, range(CLIENTS)) for job in created]

        found = {job: get_job(running.database, job) for job in jobs}
        successes = {job: get_statuses(running.database, job).count("succeeded") for job in jobs}
        lost = [job for job, count in successes.items() if count == 0]
        doubled = [job for job, count in successes.items() if count > 1]
        attempts = Counter(job.attempt for job in found.values())
        if FULL:
            figures = {"jobs": len(jobs), "clients": CLIENTS, "workers": WORKERS, "worker_kills": killer.kills}
            keep("chaos", {**figures, "lost": lost, "doubled": doubled, "attempts": attempts, "seed": SEED})
            for id, count in (("jobs_lost", len(lost)), ("jobs_doubled", len(doubled))):
                metric = f"{id.replace('_', ' ')} of {len(jobs)}, {killer.kills} kills of a worker"
                summarize(id, metric, count, "= 0", count == 0, "make chaos")

        assert lost == []
        assert doubled == []
        assert_each_succeeded_once(running, jobs)
        with running.client() as client:
            assert_nothing_else(running, client, jobs, ready=WORKERS)
        assert_workers_leave_nothing(running)
