"""What the API's tests send and expect."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response

from jobs import keys
from jobs.database import Database
from jobs.keys import SCOPES
from jobs.schemas import Scope
from jobs.settings import Settings
from tests.helpers import TENANT
from tests.tiny import reviews

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


def zipped(folder: Path, changes: Mapping[str, bytes | None] | None = None, inside: str = "") -> bytes:
    """The folder as a zip; `changes` replace, add or (None) leave out files."""
    files: dict[str, bytes | None] = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, **(changes or {})}.items():
            if content is not None:
                archive.writestr(inside + name, content)
    return buffer.getvalue()


def upload(client: TestClient, content: bytes, filename: str, **fields: str) -> Response:
    return client.post("/v1/datasets", data=fields, files={"file": (filename, content)})


def upload_reviews(client: TestClient) -> str:
    """Id of a good dataset."""
    rows = "".join(f"{row['text']},{row['label']}\n" for row in reviews(20))
    answer = upload(client, f"text,label\n{rows}".encode(), "reviews.csv")
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def create_job(client: TestClient, dataset_id: str, **fields: Any) -> Response:
    return client.post("/v1/jobs", json={"model": "tiny-bert", "dataset": dataset_id, "budgets": [0.5], **fields})


def make_key(settings: Settings, tenant: str = TENANT, scopes: tuple[Scope, ...] = SCOPES, **limits: int) -> str:
    """A key that opens the tenant's things."""
    database, key = Database(settings.database_url), keys.new_key()
    with database.writing() as session:
        keys.create_key(session, key, settings.secret_key.get_secret_value(), tenant, scopes=scopes, limits=limits)
    database.close()
    return key


def kept(client: TestClient, settings: Settings) -> tuple[int, list[Path]]:
    """Datasets in the database, and objects in storage."""
    walked = os.walk(settings.data_dir / "storage")  # which bears that the sweep deletes at the same time
    objects = [Path(folder) / name for folder, _, names in walked for name in names]
    return len(client.get("/v1/datasets").json()["data"]), objects


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
