"""Every endpoint of the contract, called by those who must not get through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import select, update

from jobs import leases
from jobs.database import Database
from jobs.services import Services
from jobs.settings import Settings
from jobs.tables import ApiKey, Artifact, Base, Delivery
from tests.api.requests import assert_refused, create_job, make_key, upload_reviews, zipped
from tests.helpers import signed_in

OPEN = {"/healthz", "/readyz", "/metrics"}
"""Whoever comes may see these."""
ADMIN = "/v1/keys"
"""Below it only an admin gets anywhere, but for the key of the request itself."""
OWN_KEY = "/v1/keys/me"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

THINGS: dict[str, Callable[[Services, TestClient], str]] = {
    "job_id": lambda services, client: finished_job(services, client),
    "path": lambda services, client: ARTIFACT,
    "folder": lambda services, client: ARTIFACT.partition("/")[0],
    "number": lambda services, client: "1",
    "dataset_id": lambda services, client: upload_reviews(client),
    "model_id": lambda services, client: uploaded_model(client, services.settings.model_root / "tiny-bert"),
    "upload_id": lambda services, client: whole_upload(client),
    "name": lambda services, client: stored_secret(client),
    "webhook_id": lambda services, client: str(client.get("/v1/webhooks").json()["data"][0]["id"]),
    "delivery_id": lambda services, client: finished_delivery(services, client),
    "key_id": lambda services, client: str(client.get(OWN_KEY).json()["id"]),
}
"""Path parameter: makes such a thing, and its value."""
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("PATCH", "/v1/keys/{key_id}"): {"json": {"name": "theirs"}},
    ("PATCH", "/v1/webhooks/{webhook_id}"): {"json": {"description": "theirs"}},
    ("PUT", "/v1/uploads/{upload_id}/parts/{number}"): {"content": b"abc"},
}
"""What an endpoint with both a body and path parameters takes, as arguments of the HTTP client."""
ASKING = {"/v1/jobs/estimate", "/v1/models/preflight"}
"""They change nothing, though what they want to know comes as a body."""
HOST_WIDE = {"/v1/models/local"}
"""Lists of what the host offers to everybody."""
ARTIFACT = "budget-0.5/config.json"

SIZE = {"parameters": 1, "bytes": 4, "compressible_parameters": 1, "compressible_bytes": 4}
RESULT: dict[str, Any] = {
    "task": "text-classification",
    "metric": "accuracy",
    "dense_metrics": {},
    "dense_size": SIZE,
    "budgets": [],
    "seconds": {},
}


def endpoints(app: Any) -> list[tuple[str, str]]:
    """Method and path of everything served."""
    paths = app.openapi()["paths"]
    return [
        (method.upper(), path) for path, methods in paths.items() for method in methods if method.upper() in METHODS
    ]


def finished_job(services: Services, client: TestClient) -> str:
    """A job that published a file, and kept a log."""
    id = str(create_job(client, upload_reviews(client)).json()["id"])
    key = f"{leases.files_of(id, 1)}/{ARTIFACT}"
    file = services.settings.data_dir / "config.json"
    file.write_text("ours alone")
    for stored in (key, leases.log_of(id, 1)):
        services.storage.put_file(stored, file)
    with services.database.writing() as session:
        lease = leases.claim(session, id, 30)
        assert lease is not None
        artifact = Artifact(job_id=id, path=ARTIFACT, bytes=10, sha256="0" * 64, storage_key=key)
        assert leases.succeed(session, lease, RESULT, [artifact])
    return id


def uploaded_model(client: TestClient, folder: Path) -> str:
    answer = client.post("/v1/models", files={"file": ("model.zip", zipped(folder))})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def whole_upload(client: TestClient) -> str:
    id = str(client.post("/v1/uploads", json={"filename": "data.csv", "bytes": 3}).json()["id"])
    assert client.put(f"/v1/uploads/{id}/parts/1", content=b"abc").status_code == 200
    return id


def stored_secret(client: TestClient) -> str:
    client.post("/v1/secrets", json={"name": "hub", "value": "hf_ours-alone"})
    return "hub"


def finished_delivery(services: Services, client: TestClient) -> str:
    """One that no sender will touch."""
    [webhook] = client.get("/v1/webhooks").json()["data"]
    id = str(client.post(f"/v1/webhooks/{webhook['id']}/test").json()["id"])
    with services.database.writing() as session:
        session.execute(update(Delivery).values(next_at=None, state="failed"))
    return id


@pytest.fixture
def our_services(either_settings: Settings) -> Iterator[Services]:
    opened = Services.open(either_settings)
    yield opened
    opened.close()


@pytest.fixture
def things(our_services: Services, either_client: TestClient) -> dict[str, str]:
    """Of ours: a value for every path parameter there is."""
    found = sorted(
        {
            part[1:].partition("}")[0].removesuffix(":path")
            for _, path in endpoints(either_client.app)
            for part in _named(path)
        }
    )
    unknown = [name for name in found if name not in THINGS]
    assert not unknown, f"teach THINGS how to make these: {unknown}"
    our_services.settings.model_root.mkdir(exist_ok=True)
    either_client.post("/v1/webhooks", json={"url": "https://hooks.invalid/jactus", "events": ["job.failed"]})
    return {name: make(our_services, either_client) for name, make in THINGS.items()}


def _named(path: str) -> list[str]:
    return [part for part in path.split("/") if part.startswith("{")]


def call(client: TestClient, method: str, path: str, things: dict[str, str]) -> Response:
    body = BODIES.get((method, path), {})
    return client.request(method, path.format(**things), **body)


def everything(database: Database, storage: Path) -> dict[str, Any]:
    """Every row and every file."""
    with database.reading() as session:
        rows: dict[str, Any] = {}
        for table in Base.metadata.sorted_tables:
            columns = [column for column in table.columns if column is not ApiKey.__table__.c.last_used_at]
            rows[table.name] = sorted(map(repr, session.execute(select(*columns))))
    return rows | {str(path): path.read_bytes() for path in storage.rglob("*") if path.is_file()}


def test_another_tenant_finds_nothing_and_changes_nothing(
    our_services: Services, either_client: TestClient, things: dict[str, str]
) -> None:
    client, settings = either_client, our_services.settings
    ours = [(method, path) for method, path in endpoints(client.app) if _named(path)]
    assert len(ours) >= 10
    for method, path in ours:
        if method == "GET":
            assert call(client, method, path, things).status_code == 200, f"{path} is ours"
    theirs = make_key(settings, "them", ("read", "write"))
    before = everything(our_services.database, settings.data_dir / "storage")
    signed_in(client, theirs)

    for method, path in ours:
        answer = call(client, method, path, things)
        wanted = 403 if path.startswith(ADMIN) else 404
        assert answer.status_code == wanted, f"{method} {path}: {answer.status_code} {answer.text}"
        assert "ours alone" not in answer.text
    assert_refused(create_job(client, things["dataset_id"]), 404, "dataset_not_found", "dataset")

    assert everything(our_services.database, settings.data_dir / "storage") == before


def test_another_tenant_s_lists_are_empty(
    our_services: Services, either_client: TestClient, things: dict[str, str]
) -> None:
    client = either_client
    lists = [
        path for method, path in endpoints(client.app) if method == "GET" and not _named(path) and path not in OPEN
    ]
    own_key, admin = {OWN_KEY}, {path for path in lists if path.startswith(ADMIN)} - {OWN_KEY}
    signed_in(client, make_key(our_services.settings, "them", ("read", "write")))
    for path in set(lists) - own_key - admin - HOST_WIDE:
        assert client.get(path).json()["data"] == [], path
    for path in admin:
        assert_refused(client.get(path), 403, "missing_scope")
    assert client.get(OWN_KEY).json()["tenant"] == "them"


@pytest.mark.parametrize("authorization", [None, "Bearer jactus_wrong"])
def test_nothing_is_open_without_a_key_but_health(client: TestClient, authorization: str | None) -> None:
    del client.headers["Authorization"]
    headers = {"Authorization": authorization} if authorization else {}
    for method, path in endpoints(client.app):
        answer = client.request(method, path.replace("{", "").replace("}", ""), headers=headers)
        if path in OPEN:
            assert answer.status_code == 200, path
        else:
            assert_refused(answer, 401, "invalid_api_key")


def test_a_key_to_read_with_writes_nothing(client: TestClient, settings: Settings) -> None:
    signed_in(client, make_key(settings, scopes=("read",)))
    for method, path in endpoints(client.app):
        if method != "GET" and path not in ASKING:
            assert_refused(client.request(method, path.replace("{", "").replace("}", "")), 403, "missing_scope")


def test_a_key_to_write_with_reads_nothing(client: TestClient, settings: Settings) -> None:
    signed_in(client, make_key(settings, scopes=("write",)))
    for method, path in endpoints(client.app):
        if method == "GET" and path not in OPEN | {OWN_KEY}:
            assert_refused(client.request(method, path.replace("{", "").replace("}", "")), 403, "missing_scope")
