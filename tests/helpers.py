"""What the service's tests do again and again: settings, rows, events, and waiting without fixed sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
from fastapi.testclient import TestClient

from jactus_core.config import Hyperparameters
from jobs import datasets, schemas, store
from jobs.database import Database
from jobs.keys import Caller
from jobs.settings import Settings
from jobs.tables import Dataset, Job
from tests.servers import S3
from tests.tiny import write_reviews

Found = TypeVar("Found")

API_KEY = "jactus_the-key-of-the-tests"
TENANT = "default"
NOBODY_LISTENS = "redis://127.0.0.1:1/0"
QUICK = Hyperparameters(max_length=16, warmup_epochs=1, calibration_samples=16, epochs=1)
"""Hyperparameters of a run that takes a second once torch is imported."""
ENDLESS = QUICK.model_copy(update={"epochs": 1000})
"""Of a run that no test waits for."""


def make_settings(folder: Path, **values: Any) -> Settings:
    """Settings of this test alone, whatever `.env` there is; no process but those of runs."""
    given = {"secret_key": "the secret of the tests", "api_key": API_KEY, "warm_start": False}
    return Settings(_env_file=None, **{"data_dir": folder, **given, **values})


def s3_settings(server: S3, prefix: str) -> dict[str, Any]:
    """The settings that lead to `prefix` in the server's bucket."""
    return {
        "storage_url": f"s3://{server.bucket}/{prefix}",
        "s3_endpoint": server.endpoint,
        "s3_access_key_id": server.access_key_id,
        "s3_secret_access_key": server.secret_access_key,
    }


def add_dataset(database: Database, folder: Path, rows: int = 60, tenant: str = TENANT) -> Dataset:
    """A described dataset; its file is at `folder`, not in storage."""
    file = write_reviews(folder / "reviews.jsonl", rows)
    dataset = datasets.check_file(Caller(tenant, "key_tests"), file.name, file, "text-classification", {})
    with database.writing() as session:
        session.add(dataset)
    return dataset


def add_job(
    database: Database,
    dataset: Dataset,
    model: str = "tiny-bert",
    hyperparameters: Hyperparameters = QUICK,
    **fields: Any,
) -> str:
    """A queued job of the dataset's tenant; returns its id."""
    given = {"model": model, "dataset": dataset.id, "budgets": (0.8,), "hyperparameters": hyperparameters}
    request = schemas.JobCreate.model_validate({**given, **fields})
    with database.writing() as session:
        return store.create(session, Caller(dataset.tenant, dataset.key_id), request, dataset).id


def get_job(database: Database, id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, id)


def get_events(database: Database, job_id: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Number, type and data of every event."""
    with database.reading() as session:
        return [(event.number, event.type, event.data) for event in store.events(session, job_id, 0, 10_000)]


def get_statuses(database: Database, job_id: str) -> list[str]:
    """Every status the job was in, in order."""
    return [data["status"] for _, type, data in get_events(database, job_id) if type == "status"]


def wait_for(condition: Callable[[], Found], seconds: float = 30, what: str = "it") -> Found:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
    return found


def descendants(command: str = "", pid: int | None = None) -> list[psutil.Process]:
    """Living processes below `pid` (default: this one) whose command line holds `command`."""
    return [process for process in psutil.Process(pid).children(recursive=True) if command in command_line(process)]


def command_line(process: psutil.Process) -> str:
    """Empty for a process that is gone."""
    try:
        return " ".join(process.cmdline()) if is_alive(process) else ""
    except psutil.NoSuchProcess:
        return ""


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def signed_in(client: TestClient, key: str = API_KEY) -> TestClient:
    client.headers["Authorization"] = f"Bearer {key}"
    return client
