"""The whole job over HTTP: with nothing installed, and with PostgreSQL, Valkey and S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.client import Client
from cli.embedded import EmbeddedService
from jactus_core.progress import STAGES
from jobs import schemas
from jobs.states import Status
from tests.helpers import QUICK, command_line, descendants, make_settings, s3_settings, wait_for
from tests.tiny import write_reviews

BUDGETS = (0.8, 0.5)


def _on_servers(request: pytest.FixtureRequest) -> dict[str, Any]:
    server = request.getfixturevalue("s3_server")
    return {
        "database_url": request.getfixturevalue("postgres_server").new_database(),
        "broker_url": request.getfixturevalue("valkey_url"),
        **s3_settings(server, uuid.uuid4().hex),
    }


@pytest.fixture(scope="module", params=["embedded", "servers"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path
) -> Iterator[EmbeddedService]:
    servers = _on_servers(request) if request.param == "servers" else {}
    folder = tmp_path_factory.mktemp(request.param)
    quick = {"lease_seconds": 3, "sweep_seconds": 0.5}
    with EmbeddedService(make_settings(folder, port=0, model_root=tiny_bert.parent, **quick, **servers)) as service:
        yield service


@pytest.fixture
def client(service: EmbeddedService) -> Iterator[Client]:
    with Client(service.url, service.api_key) as client:
        yield client


@pytest.fixture
def job(client: Client, tmp_path: Path) -> schemas.Job:
    dataset = client.upload_dataset(write_reviews(tmp_path / "reviews.jsonl"))
    return client.create_job(
        schemas.JobCreate(model="tiny-bert", dataset=dataset.id, budgets=BUDGETS, hyperparameters=QUICK)
    )


def test_a_dataset_and_a_model_become_checkpoints_that_classify(
    client: Client, job: schemas.Job, tmp_path: Path
) -> None:
    events = list(client.events(job.id))

    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [event.data.status for event in events if event.type == "status"] == ["queued", "running", "succeeded"]
    assert {event.data.stage for event in events if event.type == "progress"} == set(STAGES)
    done = client.job(job.id)
    assert done.result is not None
    assert [point.budget for point in done.result.budgets] == list(BUDGETS)
    for point in done.result.budgets:
        assert point.kept_fraction <= point.budget
        assert point.size.compressible_parameters < done.result.dense_size.compressible_parameters
        assert point.size.bytes < done.result.dense_size.bytes

    files = client.download(job.id, tmp_path / "checkpoints")  # which checks every hash
    announced = {tmp_path / "checkpoints" / artifact.path for artifact in client.artifacts(job.id)}
    assert set(files) == announced
    manifest = json.loads((tmp_path / "checkpoints" / "manifest.json").read_text())
    assert len(manifest) == len(files) - 1

    folder = tmp_path / "checkpoints" / done.result.budgets[-1].folder
    command = [sys.executable, "-m", "cli.classify", str(folder), "a great lovely film", "an awful dull plot"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    labels = [prediction["label"] for prediction in json.loads(answer.stdout)]
    assert len(labels) == 2
    assert set(labels) <= {"good", "bad"}


def test_a_job_survives_its_worker(client: Client, job: schemas.Job) -> None:
    wait_for(lambda: client.job(job.id).status == Status.RUNNING)
    [pipeline] = wait_for(lambda: descendants("worker.pipeline"), what="the run")
    workers = [found for found in descendants("-m worker") if command_line(found).endswith("-m worker")]
    groups = {os.getpgid(found.pid) for found in workers if "cli.tether" not in command_line(found)}
    [group] = groups
    os.killpg(group, signal.SIGKILL)

    statuses = [event.data.status for event in client.events(job.id) if event.type == "status"]

    assert statuses == ["queued", "running", "queued", "running", "succeeded"]
    assert client.job(job.id).attempt == 2
    assert not pipeline.is_running()
