"""Downloads from local storage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from jobs import store
from jobs.services import Services
from jobs.settings import Settings
from jobs.tables import Artifact
from tests.api.requests import assert_refused, create_job, upload_reviews

CONTENT = bytes(range(256))
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def job(client: TestClient, settings: Settings, tmp_path: Path) -> str:
    """A job that published one file."""
    id = str(create_job(client, upload_reviews(client)).json()["id"])
    key = f"jobs/{id}/attempt-1/budget-0.5/model.safetensors"
    (tmp_path / "model").write_bytes(CONTENT)
    (tmp_path / "storage" / "secret").write_text("not yours")
    services = Services.open(settings)
    services.storage.put_file(key, tmp_path / "model")
    artifact = Artifact(
        job_id=id, path="budget-0.5/model.safetensors", bytes=len(CONTENT), sha256=DIGEST, storage_key=key
    )
    with services.database.writing() as session:
        lease = store.claim(session, id, 30)
        assert lease is not None
        assert store.succeed(session, lease, {}, [artifact])
    services.close()
    return id


def test_artifacts_are_listed_with_size_and_hash(client: TestClient, job: str) -> None:
    [listed] = client.get(f"/v1/jobs/{job}/artifacts").json()["data"]
    assert listed == {
        "object": "artifact",
        "path": "budget-0.5/model.safetensors",
        "bytes": len(CONTENT),
        "sha256": DIGEST,
    }


def test_a_download_is_the_published_file(client: TestClient, job: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/artifacts/budget-0.5/model.safetensors")
    assert answer.content == CONTENT
    assert answer.headers["ETag"] == f'"{DIGEST}"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"].startswith("attachment")


def test_a_download_can_be_resumed(client: TestClient, job: str) -> None:
    answer = client.get(
        f"/v1/jobs/{job}/artifacts/budget-0.5/model.safetensors", headers={"Range": "bytes=200-", "If-Range": DIGEST}
    )
    assert answer.status_code in (200, 206)
    answer = client.get(f"/v1/jobs/{job}/artifacts/budget-0.5/model.safetensors", headers={"Range": "bytes=200-"})
    assert answer.status_code == 206
    assert answer.content == CONTENT[200:]


@pytest.mark.parametrize(
    "path",
    [
        "..%2F..%2F..%2Fsecret",
        "budget-0.5/..%2F..%2F..%2F..%2Fsecret",
        "%2Fetc%2Fpasswd",
        "budget-0.5",
        "other.json",
        "%00",
    ],
)
def test_a_path_that_was_not_published_is_not_found(client: TestClient, job: str, path: str) -> None:
    assert_refused(client.get(f"/v1/jobs/{job}/artifacts/{path}"), 404, "artifact_not_found")
