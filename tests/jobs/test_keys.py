"""API keys: nothing stored gives a key away."""

from __future__ import annotations

from sqlalchemy import text

from jobs.database import Database
from jobs.keys import accept_key, new_key, tenant_of


def test_a_key_is_known_by_its_tenant_under_the_same_secret_only(database: Database) -> None:
    key = new_key()
    with database.writing() as session:
        accept_key(session, key, "secret", "them")
    with database.reading() as session:
        assert tenant_of(session, key, "secret") == "them"
        assert tenant_of(session, key, "other secret") is None
        assert tenant_of(session, new_key(), "secret") is None
        assert tenant_of(session, "", "secret") is None


def test_a_stored_key_cannot_be_read_back(database: Database) -> None:
    key = new_key()
    with database.writing() as session:
        accept_key(session, key, "secret")
    with database.reading() as session:
        stored = str(session.execute(text("SELECT * FROM api_keys")).all())
    assert key not in stored
    assert key.removeprefix("jactus_")[:8] not in stored


def test_accepting_a_key_again_changes_nothing(database: Database) -> None:
    key = new_key()
    for _ in range(2):
        with database.writing() as session:
            accept_key(session, key, "secret")
    with database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM api_keys")).scalar_one() == 1


def test_keys_differ() -> None:
    assert len({new_key() for _ in range(100)}) == 100
