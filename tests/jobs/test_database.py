"""A pool that survives the end of its server's processes."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import text

from jobs import database as module
from jobs.database import Database


@pytest.mark.parametrize("trusted_seconds", [1000.0, -1.0], ids=["by the socket", "by asking"])
def test_a_connection_that_the_server_has_ended_is_replaced(
    postgresql_url: str, trusted_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRUSTED_SECONDS", trusted_seconds)
    database = Database(postgresql_url)
    with database.reading() as session:
        before = session.scalar(text("SELECT pg_backend_pid()"))
    with psycopg.connect(postgresql_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (before,))
    with database.writing() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != before
    database.close()


def test_a_connection_that_works_is_kept(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRUSTED_SECONDS", -1.0)
    database = Database(postgresql_url)
    pids = set()
    for _ in range(3):
        with database.writing() as session:
            pids.add(session.scalar(text("SELECT pg_backend_pid()")))
    assert len(pids) == 1
    database.close()
