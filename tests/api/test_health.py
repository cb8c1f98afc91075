"""Health endpoints tell the truth about each dependency."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from alembic import command
from fastapi.testclient import TestClient

import migrations
from api.app import create_app
from jobs.errors import NotReady
from jobs.readiness import Probe, look_at
from jobs.settings import Settings
from tests.helpers import make_settings, s3_settings
from tests.servers import S3, Postgres, free_ports, valkey

PARTS = {"database", "migrations", "broker", "storage"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def assert_ready_without_key(client: TestClient) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    checks = answer.json()["checks"]
    assert set(checks) == PARTS
    assert all(check["ok"] and check["problem"] is None and 0 <= check["seconds"] < 3 for check in checks.values())


def assert_only_this_is_away(client: TestClient, *parts: str, because: str) -> None:
    """And nothing of where it is or how it is entered is told."""
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    checks = answer.json()["checks"]
    assert {name for name, check in checks.items() if not check["ok"]} == set(parts)
    assert all(because in checks[part]["problem"] for part in parts)
    assert not any(told in answer.text for told in ("127.0.0.1", "://", "password", "/tmp"))  # noqa: S108
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_stopped_broker_is_named(settings: Settings, stack: ExitStack) -> None:
    broker_url = stack.enter_context(valkey())
    with TestClient(create_app(settings.model_copy(update={"broker_url": broker_url}))) as client:
        assert_ready_without_key(client)
        stack.close()
        assert_only_this_is_away(client, "broker", because="does not answer")


def test_a_lost_database_is_named(settings: Settings, postgres_server: Postgres, postgresql_url: str) -> None:
    with TestClient(create_app(settings.model_copy(update={"database_url": postgresql_url}))) as client:
        assert_ready_without_key(client)
        with psycopg.connect(f"{postgres_server.url}/postgres", autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {postgresql_url.rpartition('/')[2]} WITH (FORCE)".encode())
        assert_only_this_is_away(client, "database", "migrations", because="not answer")


def test_tables_older_than_the_code_are_named(settings: Settings, database_url: str) -> None:
    with TestClient(create_app(settings.model_copy(update={"database_url": database_url}))) as client:
        assert_ready_without_key(client)
        command.downgrade(migrations.alembic_config(database_url), "0001")
        assert_only_this_is_away(client, "migrations", because="is at revision 0001")


def test_tables_newer_than_the_code_are_ready(settings: Settings, client: TestClient) -> None:
    with client.app.state.services.database.writing() as session:  # type: ignore[attr-defined]
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert_ready_without_key(client)


def test_a_storage_that_is_away_is_named(tmp_path: Path, sqlite_url: str, broker_url: str) -> None:
    [port] = free_ports(1)
    away = s3_settings(S3(f"http://127.0.0.1:{port}", "user", "password"), "prefix")
    settings = make_settings(tmp_path, database_url=sqlite_url, broker_url=broker_url, **away)
    with TestClient(create_app(settings)) as client:
        assert_only_this_is_away(client, "storage", because="answer")


def test_a_storage_that_cannot_be_written_is_named(client: TestClient, settings: Settings) -> None:
    assert_ready_without_key(client)
    shutil.rmtree(settings.data_dir / "storage")
    (settings.data_dir / "storage").write_text("a file, not a folder")
    assert_only_this_is_away(client, "storage", because="does not answer")


def test_object_storage_is_written_to(tmp_path: Path, sqlite_url: str, broker_url: str, s3_server: S3) -> None:
    servers = {"database_url": sqlite_url, "broker_url": broker_url, **s3_settings(s3_server, "readiness")}
    with TestClient(create_app(make_settings(tmp_path, **servers))) as client:
        assert_ready_without_key(client)
    wrong = {**servers, "s3_secret_access_key": "wrong"}
    with TestClient(create_app(make_settings(tmp_path, **wrong))) as client:
        assert_only_this_is_away(client, "storage", because="does not answer")


def test_a_dependency_that_hangs_does_not_hang_the_answer(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with TestClient(create_app(settings.model_copy(update={"broker_url": hanging}))) as client:
            assert_only_this_is_away(client, "broker", because="No answer within 3 seconds")


def test_a_hanging_look_is_not_begun_twice_and_its_end_is_noticed() -> None:
    answered, looks = threading.Event(), []

    def check() -> None:
        looks.append(threading.current_thread())
        answered.wait()

    probes = {"part": Probe("part", check)}
    for _ in range(3):
        assert not look_at(probes, deadline_seconds=0.01)["part"].ok
    assert len(looks) == 1

    answered.set()
    looks[0].join()
    assert look_at(probes)["part"].ok
    assert len(looks) == 2


def test_only_a_problem_meant_for_all_is_told() -> None:
    def leak() -> None:
        raise RuntimeError("postgresql://user:password@host")

    def behind() -> None:
        raise NotReady("The database is old.")

    found = look_at({"one": Probe("one", leak), "other": Probe("other", behind)})
    assert "password" not in str(found["one"].problem)
    assert found["other"].problem == "The database is old."


def test_the_documentation_is_served(client: TestClient) -> None:
    assert "/openapi.json" in client.get("/docs").text
    described = client.get("/openapi.json").json()
    assert described["info"]["title"] == "JACTUS"
    assert "ErrorResponse" in described["components"]["schemas"]
