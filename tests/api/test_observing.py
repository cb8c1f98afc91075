"""What a request leaves behind: its id and one log line that holds no secret."""

from __future__ import annotations

import logging

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from tests.helpers import API_KEY, TENANT, signed_in


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "jactus.access")
    return caplog


def access_lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "jactus.access"]


def told(record: logging.LogRecord) -> tuple[str, str, int]:
    fields = vars(record)
    return fields["method"], fields["route"], fields["status"]


@pytest.mark.parametrize("given", ["7f9c", "trace_1.2-3", "x" * 64])
def test_a_harmless_request_id_of_the_caller_is_kept(client: TestClient, given: str) -> None:
    answer = client.get("/v1/jobs/job_1", headers={"X-Request-ID": given})
    assert answer.headers["X-Request-ID"] == given
    assert answer.json()["error"]["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", 'a"b', "a\\nb", "{}", "é"])
def test_any_other_is_replaced(client: TestClient, given: str) -> None:
    answer = client.get("/healthz", headers={b"X-Request-ID": given.encode()})
    assert answer.headers["X-Request-ID"].startswith("req_")


def test_every_request_is_told_once_by_its_template(client: TestClient, access: pytest.LogCaptureFixture) -> None:
    client.get("/v1/jobs/job_1/events?after=3&secret=value")
    client.get("/v1/nothing/here")
    client.put("/v1/jobs")
    client.request("BREW", "/v1/jobs")
    del client.headers["Authorization"]
    client.get("/healthz")

    lines = access_lines(access)
    assert [told(line) for line in lines] == [
        ("GET", "/v1/jobs/{job_id}/events", 404),
        ("GET", "unmatched", 404),
        ("PUT", "/v1/jobs", 405),
        ("other", "/v1/jobs", 405),
        ("GET", "/healthz", 200),
    ]
    assert [(vars(line).get("key_id"), vars(line).get("tenant")) for line in (lines[0], lines[-1])] == [
        ("key_configured", TENANT),
        (None, None),
    ]
    assert all(vars(line)["seconds"] >= 0 for line in lines)
    written = "".join(str(vars(line)) for line in lines)
    assert "secret" not in written
    assert "job_1" not in written
    assert API_KEY not in written


def test_a_failure_of_the_server_is_told_with_its_request_id(
    settings: Settings, access: pytest.LogCaptureFixture
) -> None:
    app: FastAPI = create_app(settings)

    @app.get("/broken")
    def broken() -> None:
        raise ZeroDivisionError

    with TestClient(app, raise_server_exceptions=False) as client:
        answer = signed_in(client).get("/broken", headers={"X-Request-ID": "mine"})
    assert answer.status_code == 500
    assert answer.headers["X-Request-ID"] == answer.json()["error"]["request_id"] == "mine"
    assert [told(line) for line in access_lines(access)] == [("GET", "/broken", 500)]
