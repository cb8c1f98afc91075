"""Every task over HTTP, beside text classification, in the embedded mode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from cli.client import Client
from cli.embedded import EmbeddedService
from jactus_core.tasks import TASKS, TaskName
from jobs import schemas
from tests.helpers import QUICK, make_settings
from tests.jactus_core.architectures import architectures, pictures, rows_for
from tests.jactus_core.images import encoded

MODELS: dict[TaskName, str] = {"image-classification": "vit", "text-generation": "gpt2", "multiple-choice": "qwen3"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("tasks")
    for name in MODELS.values():
        architectures[name].write(folder / "models" / name)
    with (
        EmbeddedService(make_settings(folder, port=0)) as service,
        Client(service.url, service.api_key) as client,
    ):
        yield client


def write_dataset(task: TaskName, folder: Path) -> Path:
    """As a user has it: a zip with a folder per class, or JSON lines."""
    if not TASKS[task].reads_images:
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows_for(task)), encoding="utf-8")
        return file
    file = folder / "images.zip"
    with ZipFile(file, "w") as archive:
        for number, row in enumerate(pictures()):
            archive.writestr(f"{row['label']}/{number}.png", encoded(row["image"]))
    return file


@pytest.mark.parametrize("task", MODELS)
def test_a_task_goes_all_the_way(client: Client, task: TaskName, tmp_path: Path) -> None:
    dataset = client.upload_dataset(write_dataset(task, tmp_path), task)
    quick = QUICK.model_copy(update={"rank_multiple": 1})
    request = schemas.JobCreate(model=MODELS[task], dataset=dataset.id, budgets=(0.6,), hyperparameters=quick)
    job = client.create_job(request)
    *_, last = client.events(job.id)

    done = client.job(job.id)
    assert done.error is None
    assert last.type == "status"
    assert done.result is not None
    assert (done.task, done.result.task, done.result.metric) == (task, task, TASKS[task].metric)
    [point] = done.result.budgets
    assert point.kept_fraction <= 0.6
    assert TASKS[task].metric in point.metrics
    files = {file.relative_to(tmp_path / "out").as_posix() for file in client.download(job.id, tmp_path / "out")}
    assert {"budget-0.6/model.safetensors", "budget-0.6/config.json", "budget-0.6/report.json"} <= files
