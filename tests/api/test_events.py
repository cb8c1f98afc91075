"""Events as pages and as a stream."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs import store
from jobs.database import Database
from jobs.settings import Settings
from tests.api.requests import assert_refused, create_job, upload_reviews

STREAM_SECONDS = 30
pytestmark = pytest.mark.timeout(STREAM_SECONDS)  # a stream that never ends fails its test


@pytest.fixture
def job(client: TestClient) -> str:
    return str(create_job(client, upload_reviews(client)).json()["id"])


def stream(client: TestClient, job: str, last_event_id: str | None = None) -> list[tuple[str, str, dict[str, Any]]]:
    """Id, event and data of each message, once the server has ended the stream."""
    headers = {"Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    answer = client.get(f"/v1/jobs/{job}/events", headers=headers)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    messages = []
    for block in answer.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            messages.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return messages


def test_a_page_goes_on_where_the_last_one_ended(client: TestClient, job: str) -> None:
    client.post(f"/v1/jobs/{job}/cancel")
    first = client.get(f"/v1/jobs/{job}/events", params={"limit": 1}).json()
    second = client.get(f"/v1/jobs/{job}/events", params={"limit": 1, "after": first["data"][0]["number"]}).json()
    assert [(event["number"], event["data"]["status"]) for event in first["data"]] == [(1, "queued")]
    assert [(event["number"], event["data"]["status"]) for event in second["data"]] == [(2, "cancelled")]
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_a_stream_tells_everything_and_ends_with_the_final_status(client: TestClient, job: str) -> None:
    client.post(f"/v1/jobs/{job}/cancel")
    messages = stream(client, job)
    assert [(id, event) for id, event, _ in messages] == [("1", "status"), ("2", "status")]
    assert [data for _, _, data in messages] == client.get(f"/v1/jobs/{job}/events").json()["data"]


def test_a_broken_stream_goes_on_after_the_last_event_that_arrived(client: TestClient, job: str) -> None:
    client.post(f"/v1/jobs/{job}/cancel")
    assert [id for id, _, _ in stream(client, job, "1")] == ["2"]


def test_a_stream_that_was_told_everything_ends(client: TestClient, job: str) -> None:
    client.post(f"/v1/jobs/{job}/cancel")
    assert stream(client, job, "2") == []


def test_a_stream_tells_what_happens_while_it_is_open(client: TestClient, job: str, settings: Settings) -> None:
    database = Database(settings.database_url)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(stream, client, job)
        with database.writing() as session:
            lease = store.claim(session, job, 30)
            assert lease is not None
            store.record_progress(session, lease, "loading", 0.5, "half way")
        assert client.post(f"/v1/jobs/{job}/cancel").json()["status"] == "cancelling"
        with database.writing() as session:
            assert store.confirm_stopped(session, lease)
        messages = following.result(STREAM_SECONDS)
    database.close()
    assert [(event, data["data"].get("status")) for _, event, data in messages] == [
        ("status", "queued"),
        ("status", "running"),
        ("progress", None),
        ("status", "cancelling"),
        ("status", "cancelled"),
    ]
    assert messages[2][2]["data"] == {"stage": "loading", "fraction": 0.5, "note": "half way"}


def test_a_last_event_id_that_is_no_number_is_refused(client: TestClient, job: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "x", "Accept": "text/event-stream"})
    assert_refused(answer, 422, "invalid_parameter", "last-event-id")
