"""What the API's tests send and expect."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response

from tests.tiny import reviews

TYPES = {401: "authentication_error", 404: "not_found_error", 409: "conflict_error"}


def upload(client: TestClient, content: bytes, filename: str, **columns: str) -> Response:
    return client.post("/v1/datasets", data=columns, files={"file": (filename, content)})


def upload_reviews(client: TestClient) -> str:
    """Id of a good dataset."""
    rows = "".join(f"{row['text']},{row['label']}\n" for row in reviews(20))
    answer = upload(client, f"text,label\n{rows}".encode(), "reviews.csv")
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def create_job(client: TestClient, dataset_id: str, **fields: Any) -> Response:
    return client.post("/v1/jobs", json={"model": "tiny-bert", "dataset": dataset_id, "budgets": [0.5], **fields})


def assert_refused(answer: Response, status: int, code: str, param: str | None = None, said: str = "") -> None:
    """The error has the one shape, and names the cause."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"type", "code", "message", "param", "request_id"}
    assert (error["type"], error["code"], error["param"]) == (TYPES.get(status, "invalid_request_error"), code, param)
    assert said in error["message"]
    assert error["message"].endswith(".")
    assert len(error["message"]) <= 500
    assert error["request_id"] == answer.headers["X-Request-ID"]
