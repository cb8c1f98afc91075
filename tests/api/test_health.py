"""Health endpoints tell the truth about each dependency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from tests.helpers import make_settings, s3_settings
from tests.servers import S3, Postgres, free_ports, valkey

WELL = {"database": True, "broker": True, "storage": True}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def assert_ready_without_key(client: TestClient) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "checks": WELL})


def assert_only_this_is_away(client: TestClient, part: str) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "checks": WELL | {part: False}})
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_stopped_broker_is_named(settings: Settings, stack: ExitStack) -> None:
    broker_url = stack.enter_context(valkey())
    with TestClient(create_app(settings.model_copy(update={"broker_url": broker_url}))) as client:
        assert_ready_without_key(client)
        stack.close()
        assert_only_this_is_away(client, "broker")


def test_a_lost_database_is_named(settings: Settings, postgres_server: Postgres, postgresql_url: str) -> None:
    with TestClient(create_app(settings.model_copy(update={"database_url": postgresql_url}))) as client:
        assert_ready_without_key(client)
        with psycopg.connect(f"{postgres_server.url}/postgres", autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {postgresql_url.rpartition('/')[2]} WITH (FORCE)".encode())
        assert_only_this_is_away(client, "database")


def test_a_storage_that_is_away_is_named(tmp_path: Path, sqlite_url: str, broker_url: str) -> None:
    [port] = free_ports(1)
    away = s3_settings(S3(f"http://127.0.0.1:{port}", "user", "password"), "prefix")
    settings = make_settings(tmp_path, database_url=sqlite_url, broker_url=broker_url, **away)
    with TestClient(create_app(settings)) as client:
        assert_only_this_is_away(client, "storage")


def test_the_documentation_is_served(client: TestClient) -> None:
    assert "/openapi.json" in client.get("/docs").text
    described = client.get("/openapi.json").json()
    assert described["info"]["title"] == "JACTUS"
    assert "ErrorResponse" in described["components"]["schemas"]
