"""Large files in parts: what arrives, what is replaced, what is refused, what is left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import update

from api.app import create_app
from jobs.clock import now
from jobs.keys import create_key, new_key
from jobs.services import Services
from jobs.settings import Settings
from jobs.tables import Upload
from tests.api.requests import assert_refused, kept
from tests.helpers import signed_in, wait_for
from tests.tiny import reviews

CSV = ("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in reviews(40))).encode()
PART = 1000
PARTS = {1: CSV[:PART], 2: CSV[PART:]}
SHA256 = hashlib.sha256(CSV).hexdigest()
assert PART < len(CSV) < 2 * PART


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A part may be larger than a file that is sent at once."""
    return settings.model_copy(
        update={
            "upload_part_bytes": PART,
            "max_upload_bytes": 100,
            "max_json_bytes": 20_000,
            "max_large_upload_bytes": 10_000,
        }
    )


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield signed_in(client)


def announce(client: TestClient, **fields: Any) -> Response:
    return client.post("/v1/uploads", json={"filename": "reviews.csv", "bytes": len(CSV), **fields})


def send(client: TestClient, id: str, *numbers: int) -> None:
    for number in numbers:
        assert client.put(f"/v1/uploads/{id}/parts/{number}", content=PARTS[number]).status_code == 200


def finish(client: TestClient, id: str, **fields: Any) -> Response:
    return client.post("/v1/datasets/from-upload", json={"upload": id, **fields})


def described(content: bytes, number: int) -> dict[str, Any]:
    return {"number": number, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_file_that_arrives_in_parts_becomes_a_dataset(client: TestClient, settings: Settings) -> None:
    answer = announce(client, sha256=SHA256)
    assert answer.status_code == 201
    upload = answer.json()
    path = f"/v1/uploads/{upload['id']}"
    assert (answer.headers["Location"], upload["part_bytes"], upload["parts"]) == (path, PART, [])

    answer = client.put(f"{path}/parts/2", content=PARTS[2])
    assert answer.json() == described(PARTS[2], 2)
    send(client, upload["id"], 1)
    assert client.get(path).json()["parts"] == [described(PARTS[1], 1), described(PARTS[2], 2)]

    dataset = finish(client, upload["id"]).json()
    assert (dataset["name"], dataset["bytes"], dataset["sha256"]) == ("reviews.csv", len(CSV), SHA256)
    assert dataset["classes"] == {"bad": 20, "good": 20}
    assert_refused(client.get(path), 404, "upload_not_found")
    assert_refused(finish(client, upload["id"]), 404, "upload_not_found", "upload")
    stored = settings.data_dir / "storage" / "datasets" / dataset["id"] / "data.csv"
    wait_for(lambda: kept(client, settings) == (1, [stored]), what="the sweep")
    assert stored.read_bytes() == CSV


def test_a_part_that_is_sent_again_is_replaced(client: TestClient) -> None:
    id = announce(client, sha256=SHA256).json()["id"]
    client.put(f"/v1/uploads/{id}/parts/1", content=b"x" * PART)
    send(client, id, 2)
    assert_refused(finish(client, id), 422, "upload_corrupt", "upload", SHA256)
    send(client, id, 1)
    assert finish(client, id).status_code == 201


def test_a_dataset_is_not_made_before_every_part_is_here(client: TestClient, settings: Settings) -> None:
    id = announce(client).json()["id"]
    assert_refused(finish(client, id), 409, "upload_incomplete", "upload", "2 of its parts: 1, 2")
    send(client, id, 2)
    assert_refused(finish(client, id), 409, "upload_incomplete", "upload", "1 of its parts: 1")
    assert client.get("/v1/datasets").json()["data"] == []


def test_an_upload_outlives_a_dataset_that_was_refused(client: TestClient) -> None:
    id = announce(client).json()["id"]
    send(client, id, 1, 2)
    answer = finish(client, id, columns={"text": "body"})
    assert_refused(answer, 422, "missing_column", "columns.text")
    assert client.get("/v1/datasets").json()["data"] == []
    assert finish(client, id, columns={"text": "text"}).status_code == 201


@pytest.mark.parametrize(
    ("number", "content", "status", "code", "param", "said"),
    [
        (1, b"x" * (PART - 1), 422, "invalid_parameter", "number", "exactly 1,000"),
        (1, b"x" * (PART + 1), 413, "payload_too_large", None, "up to 1,000 bytes"),
        (1, b"", 422, "invalid_parameter", "number", "exactly 1,000"),
        (2, PARTS[2] + b"x", 422, "invalid_parameter", "number", f"exactly {len(PARTS[2]):,}"),
        (0, b"x", 422, "invalid_parameter", "number", "parts 1 to 2"),
        (3, b"x", 422, "invalid_parameter", "number", "parts 1 to 2"),
        (10**30, b"x", 422, "invalid_parameter", "number", "parts 1 to 2"),
        ("one", b"x", 422, "invalid_parameter", "number", "one"),
    ],
)
@pytest.mark.parametrize("announced", [True, False])
def test_a_part_of_a_wrong_size_or_number_is_refused_and_nothing_is_kept(
    client: TestClient,
    settings: Settings,
    number: int | str,
    content: bytes,
    status: int,
    code: str,
    param: str | None,
    said: str,
    announced: bool,
) -> None:
    id = announce(client).json()["id"]
    body = content if announced else iter([content[:10], content[10:]])
    assert_refused(client.put(f"/v1/uploads/{id}/parts/{number}", content=body), status, code, param, said)
    assert client.get(f"/v1/uploads/{id}").json()["parts"] == []
    assert kept(client, settings) == (0, [])


def test_only_parts_may_be_as_large_as_parts(client: TestClient) -> None:
    large = b"x" * 70_000
    for method, path in (("POST", "/v1/uploads/upload_1/parts/1"), ("PUT", "/v1/jobs"), ("POST", "/v1/datasets/hub")):
        answer = client.request(method, path, content=large)
        assert answer.status_code in (405, 413)
    assert_refused(client.post("/v1/datasets/hub", content=large), 413, "payload_too_large", None, "up to 20,000 bytes")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": 10_001}, "bytes"),
        ({"bytes": 10**30}, "bytes"),
        ({"filename": ""}, "filename"),
        ({"filename": "a/"}, "filename"),
        ({"filename": ".."}, "filename"),
        ({"filename": "a\0.csv"}, "filename"),
        ({"filename": "a\n.csv"}, "filename"),
        ({"filename": "x" * 10_000}, "filename"),
        ({"filename": "x" * 201}, "filename"),
        ({"sha256": "beef"}, "sha256"),
        ({"sha256": SHA256 + "\n"}, "sha256"),
        ({"parts": 3}, "parts"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_upload_that_cannot_be_is_refused(client: TestClient, fields: dict[str, Any], param: str) -> None:
    assert_refused(announce(client, **fields), 422, "invalid_parameter", param)


def test_a_forgotten_upload_leaves_nothing(client: TestClient, settings: Settings) -> None:
    id = announce(client).json()["id"]
    send(client, id, 1)
    assert client.delete(f"/v1/uploads/{id}").status_code == 204
    for answer in (
        client.get(f"/v1/uploads/{id}"),
        client.delete(f"/v1/uploads/{id}"),
        client.put(f"/v1/uploads/{id}/parts/1", content=PARTS[1]),
    ):
        assert_refused(answer, 404, "upload_not_found")
    wait_for(lambda: kept(client, settings) == (0, []), what="the sweep")


def test_an_upload_whose_time_is_over_does_not_exist(client: TestClient) -> None:
    id = announce(client).json()["id"]
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    with services.database.writing() as session:
        session.execute(update(Upload).values(expires_at=now()))
    assert_refused(client.get(f"/v1/uploads/{id}"), 404, "upload_not_found")
    assert_refused(finish(client, id), 404, "upload_not_found", "upload")


def test_another_tenants_upload_does_not_exist(client: TestClient, settings: Settings) -> None:
    id = announce(client).json()["id"]
    send(client, id, 1, 2)
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    key = new_key()
    with services.database.writing() as session:
        create_key(session, key, settings.secret_key.get_secret_value(), "them")
    signed_in(client, key)
    path = f"/v1/uploads/{id}"
    for answer in (client.get(path), client.delete(path), client.put(f"{path}/parts/1", content=b"x" * PART)):
        assert_refused(answer, 404, "upload_not_found")
    assert_refused(finish(client, id), 404, "upload_not_found", "upload")
    assert finish(signed_in(client), id).json()["sha256"] == SHA256
