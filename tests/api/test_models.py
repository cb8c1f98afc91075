"""Uploading, listing, checking and deleting models over HTTP."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from api.app import create_app
from jactus_core import models as core_models
from jactus_core.files import sha256_of
from jobs import models
from jobs.database import Database
from jobs.keys import create_key, new_key
from jobs.services import Services
from jobs.settings import Settings
from jobs.sweep import sweep
from tests.api.requests import assert_refused, create_job, upload_reviews, zipped
from tests.helpers import TENANT, make_settings, s3_settings, signed_in
from tests.servers import S3

GOOD = {"hf_good"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def upload_model(client: TestClient, content: bytes, filename: str = "small.zip") -> Response:
    return client.post("/v1/models", files={"file": (filename, content)})


def uploaded(client: TestClient, folder: Path) -> str:
    answer = upload_model(client, zipped(folder))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def preflight(client: TestClient, model: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/models/preflight", json={"model": model, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def with_secret(name: str | None) -> dict[str, Any]:
    return {"secret": name}


@pytest.mark.parametrize("inside", ["", "tiny/"])
def test_an_uploaded_model_is_described_and_can_be_named_by_a_job(
    client: TestClient, tiny_bert: Path, inside: str
) -> None:
    answer = upload_model(client, zipped(tiny_bert, {"._hidden": b"", ".git": b""}, inside))
    assert answer.status_code == 201, answer.text
    model = answer.json()
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in tiny_bert.iterdir()}
    assert (model["object"], model["name"], model["model_type"]) == ("model", "small", "bert")
    assert model["files"] == files
    assert model["bytes"] == sum(file.stat().st_size for file in tiny_bert.iterdir())
    assert model["parameters"] * 4 <= files["model.safetensors"]["bytes"] <= model["parameters"] * 4 + 10_000
    assert client.get(f"/v1/models/{model['id']}").json() == model
    assert client.get("/v1/models").json()["data"] == [model]

    job = create_job(client, upload_reviews(client), model=model["id"])
    assert job.status_code == 201, job.text
    assert (job.json()["model"], job.json()["revision"]) == (model["id"], None)
    assert_refused(client.delete(f"/v1/models/{model['id']}"), 409, "in_use", None, job.json()["id"])
    client.post(f"/v1/jobs/{job.json()['id']}/cancel")
    assert client.delete(f"/v1/models/{model['id']}").status_code == 204
    assert client.get("/v1/models").json()["data"] == []
    retried = client.post(f"/v1/jobs/{job.json()['id']}/retry")
    assert_refused(retried, 404, "model_not_found", "model", model["id"])
    gone = create_job(client, job.json()["dataset"], model=model["id"])
    assert_refused(gone, 404, "model_not_found", "model", model["id"])


def test_a_deleted_models_files_go_with_the_next_sweep(client: TestClient, settings: Settings, tiny_bert: Path) -> None:
    id = uploaded(client, tiny_bert)
    stored = Path(settings.storage_url.removeprefix("file://")) / "models" / id
    assert {file.name for file in stored.iterdir()} == {file.name for file in tiny_bert.iterdir()}
    client.delete(f"/v1/models/{id}")
    services = Services.open(settings)
    sweep(services)
    services.close()
    assert not stored.exists()


def test_a_worker_gets_the_files_from_s3_as_they_were_uploaded_and_notices_damage(
    settings: Settings, s3_server: S3, tiny_bert: Path, tmp_path: Path
) -> None:
    given = settings.model_dump() | s3_settings(s3_server, "models-test")
    remote = make_settings(settings.data_dir, **given)
    with TestClient(create_app(remote)) as client:
        id = uploaded(signed_in(client), tiny_bert)
        assert create_job(client, upload_reviews(client), model=id).status_code == 201
    services = Services.open(remote)
    with services.database.reading() as session:
        model = models.find_uploaded(session, TENANT, id)
    models.fetch(services.storage, model, tmp_path / "fetched", lambda: None)
    for file in tiny_bert.iterdir():
        assert (tmp_path / "fetched" / file.name).read_bytes() == file.read_bytes()
    services.storage.put_file(f"{model.storage_prefix}/vocab.txt", tiny_bert / "config.json")
    with pytest.raises(models.DamagedModel, match=r"'vocab\.txt'"):
        models.fetch(services.storage, model, tmp_path / "again", lambda: None)
    services.close()


def test_another_tenants_model_does_not_exist(client: TestClient, settings: Settings, tiny_bert: Path) -> None:
    id = uploaded(client, tiny_bert)
    database, key = Database(settings.database_url), new_key()
    with database.writing() as session:
        create_key(session, key, settings.secret_key.get_secret_value(), "them")
    database.close()
    signed_in(client, key)
    assert client.get("/v1/models").json()["data"] == []
    assert_refused(client.get(f"/v1/models/{id}"), 404, "model_not_found")
    assert_refused(client.delete(f"/v1/models/{id}"), 404, "model_not_found")
    refused = create_job(client, upload_reviews(client), model=id)
    assert_refused(refused, 404, "model_not_found", "model")
    assert_refused(client.post("/v1/models/preflight", json={"model": id}), 404, "model_not_found", "model")


def test_folders_that_a_job_may_name_are_listed(client: TestClient, settings: Settings) -> None:
    (settings.model_root / "empty").mkdir(exist_ok=True)
    shutil.copytree(settings.model_root / "tiny-bert", settings.model_root / "org" / "tiny", dirs_exist_ok=True)
    listed = {model["name"]: model for model in client.get("/v1/models/local").json()["data"]}
    assert {"tiny-bert", "org/tiny"} <= listed.keys()
    assert "empty" not in listed
    assert listed["org/tiny"]["model_type"] == "bert"
    assert create_job(client, upload_reviews(client), model="org/tiny").status_code == 201


@pytest.mark.parametrize("kind", ["folder", "upload"])
def test_a_revision_of_what_is_not_on_the_hub_is_refused(client: TestClient, tiny_bert: Path, kind: str) -> None:
    model = "tiny-bert" if kind == "folder" else uploaded(client, tiny_bert)
    answer = create_job(client, upload_reviews(client), model=model, revision="main")
    assert_refused(answer, 422, "invalid_parameter", "revision", "no revisions")


def test_a_preflight_tells_what_there_is_to_know(client: TestClient, tiny_bert: Path) -> None:
    found = preflight(client, "tiny-bert", task="text-classification")
    assert found["problems"] == []
    assert (found["exists"], found["gated"], found["safetensors"]) == (True, False, True)
    assert (found["model_type"], found["architecture_supported"], found["revision"]) == ("bert", True, None)
    assert "text-classification" in found["tasks"]
    assert found["bytes"] > (tiny_bert / "model.safetensors").stat().st_size > 4 * found["parameters"]
    assert found["free_disk_bytes"] > 0


@pytest.mark.parametrize(
    ("model", "task", "exists", "code"),
    [
        ("tiny-bert", "image-classification", True, "unsupported_model"),
        ("no-such-model", None, False, "model_not_found"),
        ("../tiny-bert", None, False, "model_not_found"),
        ("pickled", None, True, "unsafe_weights"),
    ],
)
def test_a_preflight_names_the_problem_that_creating_the_job_would_meet(
    client: TestClient, settings: Settings, model: str, task: str | None, exists: bool, code: str
) -> None:
    (settings.model_root / "pickled").mkdir(exist_ok=True)
    (settings.model_root / "pickled" / "config.json").write_text('{"model_type": "bert"}')
    found = preflight(client, model, task=task)
    assert found["exists"] is exists
    assert [problem["code"] for problem in found["problems"]] == [code]
    assert found["safetensors"] is {"tiny-bert": True, "pickled": False}.get(model)


class Hub:
    """What the hub answers, to a token that may see the model and to anybody else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str | None] = []

    def __call__(self, token: str | None = None) -> Any:
        self.asked.append(token)
        sizes = {file.name: file.stat().st_size for file in self.folder.iterdir()}
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
        info = SimpleNamespace(sha=COMMIT, gated="manual", siblings=siblings, safetensors=SimpleNamespace(total=1234))

        def model_info(name: str, **_: Any) -> Any:
            if name != "them/gated":
                raise RepositoryNotFoundError("unknown", response=RESPONSE)
            return info

        def auth_check(_: str) -> None:
            if token not in GOOD:
                raise GatedRepoError("gated", response=RESPONSE)

        return SimpleNamespace(model_info=model_info, auth_check=auth_check)


RESPONSE = httpx2.Response(403, request=httpx2.Request("GET", "https://hub.invalid"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny_bert: Path) -> Hub:
    """A hub with one gated model, whose files this host has in its cache already."""
    hub = Hub(tiny_bert)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(core_models, "HfApi", hub)
    monkeypatch.setattr(core_models, "hf_hub_download", lambda *_, **__: str(tiny_bert / "config.json"))
    return hub


def test_a_gated_model_needs_a_stored_token_that_opens_it(client: TestClient, hub: Hub) -> None:
    for name, token in (("good", "hf_good"), ("bad", "hf_bad")):
        client.post("/v1/secrets", json={"name": name, "value": token})
    dataset = upload_reviews(client)
    for secret in (None, "bad"):
        found = preflight(client, "them/gated", **with_secret(secret))
        assert (found["exists"], found["gated"]) == (True, True)
        assert [problem["code"] for problem in found["problems"]] == ["gated_model"]
        refused = create_job(client, dataset, model="them/gated", **with_secret(secret))
        assert_refused(refused, 422, "gated_model", "model", "accept its licence")

    found = preflight(client, "them/gated", **with_secret("good"))
    assert (found["problems"], found["gated"], found["revision"], found["parameters"]) == ([], True, COMMIT, 1234)
    job = create_job(client, dataset, model="them/gated", **with_secret("good"))
    assert (job.status_code, job.json()["revision"], job.json()["secret"]) == (201, COMMIT, "good")
    assert hub.asked.count("hf_good") == 1, "what was found is remembered for a minute"
    assert create_job(client, dataset, model="them/gated").status_code == 422, "but not for others"


def test_a_token_that_was_replaced_is_asked_for_again(client: TestClient, hub: Hub) -> None:
    for token, problems in (("hf_good", []), ("hf_bad", ["gated_model"])):
        client.post("/v1/secrets", json={"name": "hub", "value": token})
        found = preflight(client, "them/gated", **with_secret("hub"))
        assert [problem["code"] for problem in found["problems"]] == problems


def test_a_model_that_is_too_large_for_the_disk_is_a_problem(
    client: TestClient, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = uploaded(client, tiny_bert)
    monkeypatch.setattr("jobs.planning.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert [problem["code"] for problem in preflight(client, id)["problems"]] == ["not_enough_disk"]
