"""Events as pages and as a stream."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from api import events as api_events
from cli.client import Client
from jactus_core.errors import JactusError
from jobs import leases
from jobs.database import Database
from jobs.settings import Settings
from tests.api.live import serving
from tests.api.requests import assert_refused, create_job, upload_reviews
from tests.helpers import API_KEY, add_dataset, add_job, wait_for

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


@pytest.mark.parametrize("last", ["2", "3"])
def test_a_stream_that_was_told_everything_is_not_to_be_opened_again(client: TestClient, job: str, last: str) -> None:
    client.post(f"/v1/jobs/{job}/cancel")
    answer = client.get(f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream", "Last-Event-ID": last})
    assert (answer.status_code, answer.content) == (204, b"")


def test_where_a_broken_stream_goes_on_counts_more_than_where_it_began(client: TestClient, job: str) -> None:
    client.post(f"/v1/jobs/{job}/cancel")
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "1"}
    assert "id: 2" in client.get(f"/v1/jobs/{job}/events?after=2", headers=headers).text


def test_a_retried_job_goes_on_in_the_same_numbering(client: TestClient, job: str) -> None:
    client.post(f"/v1/jobs/{job}/cancel")
    client.post(f"/v1/jobs/{job}/retry")
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(stream, client, job, "2")
        client.post(f"/v1/jobs/{job}/cancel")
        messages = following.result(STREAM_SECONDS)
    assert [(id, data["data"]["status"]) for id, _, data in messages] == [("3", "queued"), ("4", "cancelled")]


def test_a_failure_is_told_with_its_error(client: TestClient, job: str, settings: Settings) -> None:
    database = Database(settings.database_url)
    with database.writing() as session:
        lease = leases.claim(session, job, 30)
        assert lease is not None
        assert leases.fail(session, lease, JactusError("It broke.", "dataset"))
    database.close()
    _, _, last = stream(client, job)[-1]
    error = {"code": "internal_error", "message": "It broke.", "param": "dataset"}
    assert last["data"] == {"status": "failed", "error": error}


def test_each_type_of_event_is_part_of_the_contract(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["components"]["schemas"]
    assert set(described["Event"]["discriminator"]["mapping"]) == {"status", "progress"}
    assert set(described["ProgressData"]["properties"]) == {"stage", "fraction", "note"}


def test_a_stream_tells_what_happens_while_it_is_open(client: TestClient, job: str, settings: Settings) -> None:
    database = Database(settings.database_url)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(stream, client, job)
        with database.writing() as session:
            lease = leases.claim(session, job, 30)
            assert lease is not None
            leases.record_progress(session, lease, "loading", 0.5, "half way")
        assert client.post(f"/v1/jobs/{job}/cancel").json()["status"] == "cancelling"
        with database.writing() as session:
            assert leases.confirm_stopped(session, lease)
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


@pytest.fixture
def waiting_job(settings: Settings, tmp_path: Path) -> str:
    database = Database(settings.database_url)
    id = add_job(database, add_dataset(database, tmp_path, 20))
    database.close()
    return id


def test_a_follower_outlives_a_restart_of_the_api(
    settings: Settings, waiting_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.client.connection.PAUSE_SECONDS", 0.05)
    with serving(settings) as (_, port):
        client = Client(f"http://127.0.0.1:{port}", API_KEY)
        events = client.events(waiting_job)
        seen = [next(events).number]
    with serving(settings, port), client:
        client.cancel(waiting_job)
        seen += [event.number for event in events]
    assert seen == [1, 2]


def test_a_silent_stream_has_a_heartbeat_and_ends_when_its_client_leaves(
    settings: Settings, waiting_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_events, "HEARTBEAT_SECONDS", 0)
    monkeypatch.setattr(api_events, "POLL_SECONDS", 0.01)
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {API_KEY}", "Last-Event-ID": "1"}
    with serving(settings) as (server, port):
        url = f"http://127.0.0.1:{port}/v1/jobs/{waiting_job}/events"
        for _ in range(3):
            with httpx2.stream("GET", url, headers=headers) as answer:
                assert list(islice(answer.iter_lines(), 2)) == [": ping", ""]
                assert answer.headers["Cache-Control"] == "no-store"
        wait_for(lambda: not server.server_state.tasks, what="the end of every stream")


def test_a_mute_stream_ends_too_when_its_client_leaves(settings: Settings, waiting_job: str) -> None:
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {API_KEY}"}
    with serving(settings) as (server, port):
        url = f"http://127.0.0.1:{port}/v1/jobs/{waiting_job}/events"
        with httpx2.stream("GET", url, headers=headers) as answer:
            assert "id: 1" in list(islice(answer.iter_lines(), 3))
        wait_for(lambda: not server.server_state.tasks, what="the end of the stream")
