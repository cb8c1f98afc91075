"""What a job would take is told, and what cannot be done is refused before it is queued."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from api.app import create_app
from jactus_core import estimate
from jobs import planning
from jobs.database import Database
from jobs.helper import Helper
from jobs.settings import Settings
from tests.api.requests import assert_refused, create_job, upload_reviews
from tests.helpers import get_job, make_settings, signed_in


@pytest.fixture
def dataset(client: TestClient) -> str:
    return upload_reviews(client)


def ask(client: TestClient, dataset: str, **fields: Any) -> Response:
    return client.post("/v1/jobs/estimate", json={"model": "tiny-bert", "dataset": dataset, "budgets": [0.5], **fields})


def estimated(client: TestClient, dataset: str, **fields: Any) -> dict[str, Any]:
    answer = ask(client, dataset, **fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_the_estimate_is_that_of_the_library_and_nothing_is_created(
    client: TestClient, dataset: str, tiny_bert: Path
) -> None:
    found = estimated(client, dataset, budgets=[0.8, 0.5], hyperparameters={"max_length": 32})
    expected = estimate(str(tiny_bert), budgets=(0.8, 0.5), max_length=32).as_dict()
    assert {name: found[name] for name in expected} == expected
    assert (found["object"], found["task"], found["model"]) == ("job_estimate", "text-classification", "tiny-bert")
    assert (found["feasible"], found["problems"], found["device_class"]) == (True, [], "cpu")
    assert found["needed_disk_bytes"] > found["disk_bytes"]
    assert 0 < found["seconds"]["low"] < found["seconds"]["high"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_an_infeasible_budget_is_reported_by_the_estimate_and_refused_by_the_job(
    client: TestClient, dataset: str
) -> None:
    found = estimated(client, dataset, budgets=[0.9, 0.01])
    assert [point["feasible"] for point in found["budgets"]] == [True, False]
    assert found["feasible"] is False
    assert [problem["code"] for problem in found["problems"]] == ["infeasible_budget"]

    refused = create_job(client, dataset, budgets=[0.9, 0.01])
    assert_refused(refused, 422, "infeasible_budget", "budgets", "A budget of 0.01")
    smallest = float(refused.json()["error"]["message"].split("feasible one is ")[1].split(",")[0])
    assert smallest == pytest.approx(found["smallest_budget"], abs=1e-4)
    assert create_job(client, dataset, budgets=[smallest]).status_code == 201
    assert [job["budgets"] for job in client.get("/v1/jobs").json()["data"]] == [[smallest]]


def test_more_work_takes_longer_and_more_forms_take_more_disk(client: TestClient, dataset: str) -> None:
    one = estimated(client, dataset)
    longer = estimated(client, dataset, hyperparameters={"epochs": 1000})
    both = estimated(client, dataset, outputs=["checkpoint", "dense"])
    assert longer["seconds"]["high"] > one["seconds"]["high"]
    assert both["needed_disk_bytes"] == one["needed_disk_bytes"] + one["bytes"]


def test_the_classes_of_the_dataset_count(client: TestClient, dataset: str) -> None:
    rows = "".join(f"word,{label}\n" * 2 for label in range(10))
    many = client.post("/v1/datasets", files={"file": ("many.csv", f"text,label\n{rows}".encode())}).json()["id"]
    assert estimated(client, many)["parameters"] == estimated(client, dataset)["parameters"] + 8 * 33


@pytest.fixture
def host(settings: Settings, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """A service whose workers have so much memory."""
    values = settings.model_dump() | {"device_memory": request.param}
    with TestClient(create_app(make_settings(settings.data_dir, **values))) as client:
        yield signed_in(client)


@pytest.mark.parametrize("host", [{"cpu": 0, "gpu": 10**6, "gpu-large": 10**9}], indirect=True)
def test_a_job_goes_to_the_smallest_kind_of_worker_that_holds_it(host: TestClient, settings: Settings) -> None:
    dataset, database = upload_reviews(host), Database(settings.database_url)
    for batch_size, expected in ((1, "gpu"), (64, "gpu-large"), (4096, "cpu")):
        fields = {"hyperparameters": {"batch_size": batch_size, "max_length": 64}}
        found = estimated(host, dataset, **fields)
        job = create_job(host, dataset, **fields).json()
        assert found["device_class"] == job["device_class"] == expected
        assert get_job(database, job["id"]).needed_disk_bytes == found["needed_disk_bytes"]
    database.close()


@pytest.mark.parametrize("host", [{"cpu": 10_000}], indirect=True)
def test_a_job_that_no_worker_can_hold_is_refused(host: TestClient) -> None:
    dataset = upload_reviews(host)
    found = estimated(host, dataset)
    assert (found["device_class"], found["feasible"]) == (None, False)
    assert [problem["code"] for problem in found["problems"]] == ["too_large_for_this_host"]
    assert_refused(create_job(host, dataset), 422, "too_large_for_this_host", "model", "bytes of memory")


def test_onnx_is_refused_where_the_process_that_looks_at_models_lacks_its_packages(
    client: TestClient, dataset: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"outputs": ["checkpoint", "onnx"]}
    assert create_job(client, dataset, **fields).status_code == 201
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['onnxscript'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(planning, "Helper", Helper)  # one of its own
    with TestClient(create_app(settings)) as poorer:
        signed_in(poorer)
        refused = create_job(poorer, dataset, **fields)
        assert_refused(refused, 422, "output_unavailable", "outputs", "needs onnxscript;")
        assert create_job(poorer, dataset).status_code == 201


def test_the_dataset_must_be_for_the_task(client: TestClient, dataset: str) -> None:
    for send in (ask, create_job):
        refused = send(client, dataset, task="text-generation")
        assert_refused(refused, 422, "invalid_parameter", "task", "checked for text-classification")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "no-such-architecture"}', "no-such-architecture"),
        ('{"model_type": "bert", "hidden_size": "many"}', "config.json"),
        ('{"model_type": "bert", "hidden_size": -1}', "config.json"),
        ('{"model_type": "bert", "num_attention_heads": 0}', "config.json"),
    ],
    ids=["type", "text", "negative", "zero"],
)
def test_a_configuration_that_builds_no_model_is_refused(
    client: TestClient, dataset: str, settings: Settings, tiny_bert: Path, config: str, said: str
) -> None:
    folder = settings.model_root / "strange"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes((tiny_bert / "model.safetensors").read_bytes())
    assert_refused(create_job(client, dataset, model="strange"), 422, "unsupported_model", "model", said)
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_folder_whose_configuration_changed_is_looked_at_again(
    client: TestClient, dataset: str, settings: Settings, tiny_bert: Path
) -> None:
    folder = settings.model_root / "changing"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes((tiny_bert / "model.safetensors").read_bytes())
    layers = []
    for count in (1, 10):
        text = (tiny_bert / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"num_hidden_layers": 2', f'"num_hidden_layers": {count}'))
        layers.append(estimated(client, dataset, model="changing")["layers"])
    assert layers == [1 * 6 + 1, 10 * 6 + 1]
