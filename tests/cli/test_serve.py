"""`jactus serve` as a user runs it, and every way it may end."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from cli.client import Client
from jobs import schemas
from jobs.database import Database
from jobs.states import Status
from tests.helpers import QUICK, command_line, descendants, get_job, is_alive, wait_for
from tests.tiny import write_reviews

GONE_SECONDS = 15


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The command, and what its first lines say."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", "--port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        said = {line[:9].strip(): line[9:].strip() for line in lines}
        wait_for(lambda: descendants("-m worker", process.pid), what="the worker")
        started = descendants("", process.pid)
        yield process, said
    finally:
        process.kill()
        process.communicate()
        for left in filter(is_alive, started):
            with suppress(psutil.NoSuchProcess):
                left.kill()


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JACTUS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def is_worker(command: str) -> bool:
    """Neither its tether nor a run's process."""
    return command.endswith("-m worker") and "tether" not in command


def worker_of(process: subprocess.Popen[str], but: psutil.Process | None = None) -> psutil.Process:
    """The worker, once it runs and is not `but`."""

    def found() -> list[psutil.Process]:
        running = [worker for worker in descendants("-m worker", process.pid) if is_worker(command_line(worker))]
        return [] if but in running else running

    [worker] = wait_for(found, what="the worker")
    return worker


def test_the_first_lines_say_how_to_use_it_and_a_sigterm_leaves_nothing(data_dir: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as (process, said):
        assert list(said) == ["URL", "API key", "Try"]
        assert said["API key"] in said["Try"]
        assert httpx2.get(f"{said['URL']}/readyz").json()["ready"] is True
        assert _pasted(said["Try"], said).startswith('{"object":"list","data":[]')
        everything = descendants("", process.pid)
        assert {"valkey", "worker"} <= {path.stem for path in (data_dir / "logs").glob("*.log")}

        process.send_signal(signal.SIGTERM)
        assert process.wait(GONE_SECONDS) == 0
        wait_for(lambda: not any(map(is_alive, everything)), GONE_SECONDS, "the end of every process")


def test_secrets_are_kept_for_the_owner_alone(data_dir: Path, tmp_path: Path) -> None:
    keys = []
    for _ in range(2):
        with serving(tmp_path) as (process, said):
            keys.append(said["API key"])
            process.terminate()
            process.wait(GONE_SECONDS)
    assert keys[0] == keys[1]
    assert data_dir.stat().st_mode & 0o777 == 0o700
    assert (data_dir / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert (data_dir / "valkey" / "valkey.conf").stat().st_mode & 0o777 == 0o600


def test_a_killed_worker_is_replaced_and_a_killed_launcher_leaves_nothing(data_dir: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as (process, said):
        worker = worker_of(process)
        worker.kill()
        worker_of(process, but=worker)
        assert httpx2.get(f"{said['URL']}/readyz").json()["ready"] is True
        everything = descendants("", process.pid)

        process.kill()
        wait_for(lambda: not any(map(is_alive, everything)), GONE_SECONDS, "the end of every process")


def test_a_stopped_service_hands_its_running_job_back_and_goes_on_with_it(
    data_dir: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    shutil.copytree(tiny_bert, data_dir / "models" / "tiny-bert")
    with serving(tmp_path) as (process, said):
        with Client(said["URL"], said["API key"]) as client:
            dataset = client.upload_dataset(write_reviews(tmp_path / "reviews.jsonl"))
            request = schemas.JobCreate(
                model="tiny-bert",
                dataset=dataset.id,
                budgets=(0.8,),
                hyperparameters=QUICK.model_copy(update={"epochs": 100}),
            )
            job = client.create_job(request).id
            next(event for event in client.events(job) if event.type == "progress" and event.data.stage == "finetuning")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

    database = Database(f"sqlite:///{data_dir / 'jactus.db'}")
    assert get_job(database, job).status == Status.QUEUED
    database.close()
    with serving(tmp_path) as (process, said), Client(said["URL"], said["API key"]) as client:
        list(client.events(job))
        assert (client.job(job).status, client.job(job).attempt) == (Status.SUCCEEDED, 2)


def test_a_port_that_is_taken_is_refused_with_a_sentence(data_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "cli.main", "serve", "--port", str(port)]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert f"Port {port} on 127.0.0.1 is taken" in answer.stderr
    assert "--port" in answer.stderr
    assert "Traceback" not in answer.stderr


def _pasted(command: str, said: dict[str, str]) -> str:
    """What a shell answers, or without curl what curl would have."""
    if shutil.which("curl"):
        return subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True, text=True).stdout
    return httpx2.get(command.split()[-1], headers={"Authorization": f"Bearer {said['API key']}"}).text
