"""Creating, watching and cancelling jobs over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from jactus_core.errors import JactusError
from jobs import leases
from jobs.database import Database
from jobs.queue import queue_of
from jobs.settings import Settings
from tests.api.requests import assert_refused, create_job, upload_reviews
from tests.helpers import signed_in, wait_for
from tests.servers import free_ports, valkey


@pytest.fixture
def dataset(client: TestClient) -> str:
    return upload_reviews(client)


def waiting_messages(broker_url: str) -> int:
    with redis.Redis.from_url(broker_url) as broker:
        length = broker.llen(queue_of("cpu"))
        assert isinstance(length, int)
        return length


def test_a_job_waits_with_its_whole_configuration_and_a_worker_is_told(
    client: TestClient, dataset: str, settings: Settings
) -> None:
    fields = {"budgets": [0.5, 0.8], "seed": 7, "hyperparameters": {"epochs": 3}, "metadata": {"why": "a test"}}
    answer = create_job(client, dataset, **fields)

    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["object"], job["status"], job["attempt"], job["progress"]) == ("job", "queued", 0, 0)
    assert (job["budgets"], job["seed"], job["metadata"]) == ([0.8, 0.5], 7, {"why": "a test"})
    assert (job["hyperparameters"]["epochs"], job["hyperparameters"]["weighting"]) == (3, "fisher")
    assert (job["result"], job["error"], job["started_at"], job["finished_at"]) == (None, None, None, None)
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
    wait_for(lambda: waiting_messages(settings.broker_url) == 1, what="sending the message")


@pytest.mark.parametrize(
    "budgets",
    [[0], [-1], [1.5], [0.5, 1.0001], [], [0.5, 0.5], [i / 20 for i in range(1, 18)], 0.5, None, ["half"]],
    ids=str,
)
def test_impossible_budgets_are_refused(client: TestClient, dataset: str, budgets: Any) -> None:
    answer = create_job(client, dataset, budgets=budgets)
    param = answer.json()["error"]["param"]
    assert param.startswith("budgets")
    assert_refused(answer, 422, "invalid_parameter", param)


def test_a_budget_that_is_not_a_number_is_refused(client: TestClient, dataset: str) -> None:
    body = f'{{"model": "tiny-bert", "dataset": "{dataset}", "budgets": [NaN]}}'
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert_refused(answer, 422, "invalid_parameter", "budgets.0")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"colour": "red"}, "colour"),
        ({"hyperparameters": {"colour": "red"}}, "hyperparameters.colour"),
        ({"hyperparameters": {"epochs": 0}}, "hyperparameters.epochs"),
        ({"hyperparameters": {"weighting": "guess"}}, "hyperparameters.weighting"),
        ({"seed": -1}, "seed"),
        ({"task": "poetry"}, "task"),
        ({"model": ""}, "model"),
        ({"model": "a\x00b"}, "model"),
        ({"dataset": "a\x00b"}, "dataset"),
        ({"metadata": {"key": "x" * 513}}, "metadata.key"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ],
    ids=str,
)
def test_a_field_that_is_unknown_or_out_of_range_is_named(
    client: TestClient, dataset: str, fields: dict[str, Any], param: str
) -> None:
    assert_refused(create_job(client, dataset, **fields), 422, "invalid_parameter", param, param)


@pytest.mark.parametrize("model", ["no-such-model", "nobody/no-such-model"])
def test_an_unknown_model_is_refused(client: TestClient, dataset: str, model: str) -> None:
    assert_refused(create_job(client, dataset, model=model), 422, "model_not_found", "model", model)


@pytest.mark.parametrize("model", ["../../x", "../tiny-bert/../..", "/etc", "~", "a/../../../etc", "..", "a\\..\\b"])
def test_a_model_outside_the_model_folder_is_refused(client: TestClient, dataset: str, model: str) -> None:
    assert_refused(create_job(client, dataset, model=model), 422, "model_not_found", "model")


def test_a_model_without_safetensors_is_refused(client: TestClient, dataset: str, settings: Settings) -> None:
    folder = settings.model_root / "pickled"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "pytest_model.bin").write_bytes(b"")
    assert_refused(create_job(client, dataset, model="pickled"), 422, "unsafe_weights", "model", "safetensors")


def test_an_unknown_dataset_is_refused(client: TestClient) -> None:
    assert_refused(create_job(client, "dataset_1"), 404, "dataset_not_found", "dataset", "dataset_1")


def test_a_refused_job_leaves_nothing(client: TestClient, dataset: str, settings: Settings) -> None:
    create_job(client, dataset, model="no-such-model")
    create_job(client, "dataset_1")
    assert client.get("/v1/jobs").json()["data"] == []
    assert waiting_messages(settings.broker_url) == 0


def test_a_waiting_job_is_cancelled_at_once_and_asking_again_changes_nothing(client: TestClient, dataset: str) -> None:
    id = create_job(client, dataset).json()["id"]
    first, second = client.post(f"/v1/jobs/{id}/cancel"), client.post(f"/v1/jobs/{id}/cancel")
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json() == client.get(f"/v1/jobs/{id}").json()
    assert first.json()["status"] == "cancelled"
    assert first.json()["finished_at"] is not None


def test_a_finished_job_cannot_be_cancelled(client: TestClient, dataset: str, settings: Settings) -> None:
    id = create_job(client, dataset).json()["id"]
    database = Database(settings.database_url)
    with database.writing() as session:
        lease = leases.claim(session, id, 30)
        assert lease is not None
        assert leases.fail(session, lease, JactusError("It broke.", "dataset"))
    database.close()
    assert_refused(client.post(f"/v1/jobs/{id}/cancel"), 409, "invalid_state", None, "failed")
    job = client.get(f"/v1/jobs/{id}").json()
    assert job["status"] == "failed"
    assert job["error"] == {"code": "internal_error", "message": "It broke.", "param": "dataset"}


def test_jobs_are_listed_newest_first_in_pages_and_by_status(client: TestClient, dataset: str) -> None:
    ids = sorted((create_job(client, dataset).json()["id"] for _ in range(3)), reverse=True)
    client.post(f"/v1/jobs/{ids[1]}/cancel")
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    second = client.get("/v1/jobs", params={"limit": 2, "after": ids[1]}).json()
    cancelled = client.get("/v1/jobs", params={"status": "cancelled"}).json()
    assert [job["id"] for job in first["data"]] == ids[:2]
    assert [job["id"] for job in second["data"]] == ids[2:]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [job["id"] for job in cancelled["data"]] == [ids[1]]


@pytest.mark.parametrize("params", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"status": "lost"}], ids=str)
def test_an_impossible_page_is_refused(client: TestClient, params: dict[str, str]) -> None:
    assert_refused(client.get("/v1/jobs", params=params), 422, "invalid_parameter", next(iter(params)))


@pytest.mark.parametrize("path", ["", "/cancel", "/events", "/artifacts", "/artifacts/config.json"])
def test_an_unknown_job_is_not_found(client: TestClient, path: str) -> None:
    call = client.post if path == "/cancel" else client.get
    assert_refused(call(f"/v1/jobs/job_1{path}"), 404, "job_not_found", None, "job_1")


def test_a_job_waits_while_the_broker_is_away_and_is_sent_when_it_is_back(settings: Settings, tmp_path: Path) -> None:
    [port] = free_ports(1)
    lonely = settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{port}/0", "sweep_seconds": 0.2})
    with TestClient(create_app(lonely)) as client:
        answer = create_job(signed_in(client), upload_reviews(client))
        assert answer.status_code == 201
        assert answer.json()["status"] == "queued"
        with valkey(port) as url:
            wait_for(lambda: waiting_messages(url) == 1, what="sending the message")
