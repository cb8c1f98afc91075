"""The whole service as processes that can be killed one by one, on real servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import redis

import migrations
from cli.client import Client
from jactus_core.config import Hyperparameters
from jobs import schemas
from jobs.database import Database
from jobs.settings import Settings
from jobs.states import FINAL
from jobs.storage import Storage
from tests.helpers import QUICK, make_settings, s3_settings, wait_for
from tests.servers import S3, Postgres, Server, free_ports, valkey_server
from tests.tiny import write_reviews

LEASE_SECONDS = 4
PATIENCE_SECONDS = 300
LOOK_SECONDS = 0.5


class Stack:
    """API processes and workers; each worker has scratch space of its own, as if on its own machine."""

    def __init__(self, settings: Settings, broker: Server, s3: Server) -> None:
        self.settings, self.broker, self.s3 = settings, broker, s3
        self.url = f"http://{settings.host}:{settings.port}"
        self.database = Database(settings.database_url)
        self.storage = Storage(settings)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._api: subprocess.Popen[bytes] | None = None

    def start_api(self) -> None:
        where = ["--host", self.settings.host, "--port", str(self.settings.port)]
        self._api = self._start([sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", *where], "api")
        wait_for(self._answers, 60, "the start of the API")

    def kill_api(self) -> None:
        assert self._api is not None
        kill(self._api)

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
        for process in [*self.workers, *([self._api] if self._api else [])]:
            kill(process)
        self.database.close()

    def client(self) -> Client:
        return Client(self.url, self.settings.api_key.get_secret_value())

    def scratch(self) -> list[str]:
        """Folders of runs that are left on any machine."""
        return sorted(str(path) for path in self.settings.data_dir.glob("machine-*/*"))

    def log(self, name: str) -> str:
        return (self.settings.data_dir / f"{name}.log").read_text(errors="replace")

    def _start(self, command: list[str], name: str, **changes: Any) -> subprocess.Popen[bytes]:
        environment = self.settings.model_copy(update=changes).environment()
        with (self.settings.data_dir / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False


def kill(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGKILL) -> None:
    """The whole group at once; a run's child has a group of its own and must notice by itself."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


@contextmanager
def stack(folder: Path, postgres: Postgres, s3: S3, model_root: Path) -> Iterator[Stack]:
    """On a database and a bucket's prefix of its own, with a broker of its own."""
    assert s3.server is not None
    [port] = free_ports(1)
    with ExitStack() as servers:
        broker_url, broker = servers.enter_context(valkey_server())
        settings = make_settings(
            folder,
            database_url=postgres.new_database(),
            broker_url=broker_url,
            port=port,
            model_root=model_root,
            lease_seconds=LEASE_SECONDS,
            sweep_seconds=0.5,
            resend_seconds=5,
            drain_seconds=0,
            cancel_grace_seconds=2,
            max_attempts=20,
            **s3_settings(s3, uuid.uuid4().hex),
        )
        migrations.upgrade(settings.database_url)
        running = Stack(settings, broker, s3.server)
        servers.callback(running.end)
        running.start_api()
        yield running


def new_job(client: Client, folder: Path, hyperparameters: Hyperparameters = QUICK, **fields: Any) -> str:
    """Id of a small job with a dataset of its own."""
    file = write_reviews(folder / f"{uuid.uuid4().hex}.jsonl")
    given = {"model": "tiny-bert", "dataset": client.upload_dataset(file).id, "budgets": (0.8,)}
    request = schemas.JobCreate.model_validate({**given, "hyperparameters": hyperparameters, **fields})
    return client.create_job(request).id


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


def flush(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
