"""The whole service as processes that can be killed one by one, on real servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import redis

import migrations
from cli.client import Client
from jactus_core.config import Hyperparameters
from jobs import schemas, store
from jobs.database import Database
from jobs.settings import Settings
from jobs.states import FINAL, Status
from jobs.storage import Storage
from tests.helpers import QUICK, command_line, get_events, get_job, get_statuses, make_settings, s3_settings, wait_for
from tests.servers import S3, Postgres, Server, free_ports, valkey_server
from tests.tiny import write_reviews

LEASE_SECONDS = 4
PATIENCE_SECONDS = 300
LOOK_SECONDS = 0.5
REPLICAS = 2
RUN = "worker.pipeline"
MARK = "STACK_OF_TESTS"
"""An environment variable that every process of a stack inherits; a run is not told the service's own."""


class Stack:
    """API replicas and workers; each worker has scratch space of its own, as if on its own machine."""

    def __init__(self, settings: Settings, broker: Server, s3: Server) -> None:
        self.settings, self.broker, self.s3 = settings, broker, s3
        self.database = Database(settings.database_url)
        self.storage = Storage(settings)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._apis: dict[int, subprocess.Popen[bytes]] = {}
        self._ports = free_ports(REPLICAS)
        self._name = uuid.uuid4().hex

    def url(self, replica: int = 0) -> str:
        return f"http://{self.settings.host}:{self._ports[replica]}"

    def client(self, replica: int = 0) -> Client:
        return Client(self.url(replica), self.settings.api_key.get_secret_value())

    def start_api(self, replica: int = 0) -> None:
        where = ["--host", self.settings.host, "--port", str(self._ports[replica])]
        command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", *where]
        self._apis[replica] = self._start(command, f"api-{replica}")
        wait_for(lambda: self._answers(replica), 60, f"the start of API {replica}")

    def kill_api(self, replica: int = 0) -> None:
        kill(self._apis[replica])

    def start_worker(self, machine: int | None = None, **changes: Any) -> subprocess.Popen[bytes]:
        """On a machine of its own, or on one where another worker ran before."""
        machine = len(self.workers) if machine is None else machine
        work_dir = self.settings.data_dir / f"machine-{machine}"
        worker = self._start([sys.executable, "-m", "worker"], f"worker-{machine}", work_dir=work_dir, **changes)
        self.workers[machine : machine + 1] = [worker]
        return worker

    def kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        kill(worker)

    def end(self) -> None:
        """Kill all; what they had started notices and ends by itself."""
        for process in [*self.workers, *self._apis.values()]:
            kill(process)
        self.database.close()
        wait_for(lambda: not self.processes(), 30, "the end of every process")

    def processes(self, command: str = "") -> list[psutil.Process]:
        """Of this stack, with `command` in their command line; those too whose parent is dead."""
        return [
            process for process in psutil.process_iter() if self._is_mine(process) and command in command_line(process)
        ]

    def scratch(self) -> list[str]:
        """Folders of runs that are left on any machine."""
        return sorted(str(path) for path in self.settings.data_dir.glob("machine-*/*"))

    def log(self, name: str) -> str:
        return (self.settings.data_dir / f"{name}.log").read_text(errors="replace")

    def _start(self, command: list[str], name: str, **changes: Any) -> subprocess.Popen[bytes]:
        environment = {**self.settings.model_copy(update=changes).environment(), MARK: self._name}
        with (self.settings.data_dir / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _answers(self, replica: int) -> bool:
        try:
            return httpx2.get(f"{self.url(replica)}/readyz", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._name
        except psutil.Error:
            return False


def kill(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGKILL) -> None:
    """The whole group at once; a run's child has a group of its own and must notice by itself."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


@contextmanager
def stack(folder: Path, postgres: Postgres, s3: S3, model_root: Path) -> Iterator[Stack]:
    """With up-to-date tables and an API."""
    with empty_stack(folder, postgres, s3, model_root) as running:
        migrations.upgrade(running.settings.database_url)
        running.start_api()
        yield running


@contextmanager
def empty_stack(folder: Path, postgres: Postgres, s3: S3, model_root: Path) -> Iterator[Stack]:
    """On a database, a bucket's prefix and a broker of its own, with nothing in them; nobody is started."""
    assert s3.server is not None
    folder.mkdir(exist_ok=True)
    with ExitStack() as servers:
        broker_url, broker = servers.enter_context(valkey_server())
        settings = make_settings(
            folder,
            database_url=postgres.new_database(),
            broker_url=broker_url,
            model_root=model_root,
            lease_seconds=LEASE_SECONDS,
            sweep_seconds=0.5,
            resend_seconds=5,
            drain_seconds=0,
            cancel_grace_seconds=2,
            max_attempts=20,
            **s3_settings(s3, uuid.uuid4().hex),
        )
        running = Stack(settings, broker, s3.server)
        servers.callback(running.end)
        yield running


def new_dataset(client: Client, folder: Path) -> str:
    """Id of a dataset of its own."""
    return client.upload_dataset(write_reviews(folder / f"{uuid.uuid4().hex}.jsonl")).id


def small_job(dataset: str, hyperparameters: Hyperparameters = QUICK, **fields: Any) -> schemas.JobCreate:
    given = {"model": "tiny-bert", "dataset": dataset, "budgets": (0.8,), "hyperparameters": hyperparameters}
    return schemas.JobCreate.model_validate({**given, **fields})


def new_job(client: Client, folder: Path, hyperparameters: Hyperparameters = QUICK, **fields: Any) -> str:
    """Id of a small job with a dataset of its own."""
    return client.create_job(small_job(new_dataset(client, folder), hyperparameters, **fields)).id


def wait_until_final(client: Client, id: str, patience: float = PATIENCE_SECONDS) -> schemas.Job:
    def look() -> schemas.Job | None:
        with suppress(httpx2.TransportError):
            job = client.job(id)
            if job.status in FINAL:
                return job
        time.sleep(LOOK_SECONDS)
        return None

    found = wait_for(look, patience, f"the end of {id}")
    assert found is not None
    return found


def outcomes(running: Stack, job: str) -> list[str]:
    """Of its attempts, the first one first."""
    with running.database.reading() as session:
        return [attempt.outcome for attempt in store.attempts(session, job)]


def assert_each_succeeded_once(running: Stack, jobs: Iterable[str]) -> None:
    """And the numbers of its events have no gap and no twin."""
    for job in jobs:
        assert get_job(running.database, job).status == Status.SUCCEEDED
        assert get_statuses(running.database, job).count("succeeded") == 1
        numbers = [number for number, _, _ in get_events(running.database, job)]
        assert numbers == list(range(1, len(numbers) + 1))


def assert_workers_leave_nothing(running: Stack) -> None:
    """No scratch space, and no process of a run once they have been asked to end."""
    wait_for(lambda: running.scratch() == [], 30, "empty scratch space")
    for worker in running.workers:
        worker.terminate()
    for worker in running.workers:
        worker.wait(60)
    assert running.processes(RUN) == []


def flush(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
