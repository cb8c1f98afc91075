"""API keys: nothing stored gives a key away, a revoked key opens nothing, mistyped keys are told apart."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from jobs.database import Database
from jobs.errors import NotFound
from jobs.keys import (
    SCOPES,
    create_key,
    find_caller,
    is_well_formed,
    list_keys,
    new_key,
    note_use,
    revoke_key,
)


def test_a_key_is_known_by_its_tenant_under_the_same_secret_only(database: Database) -> None:
    key = new_key()
    with database.writing() as session:
        id = create_key(session, key, "secret", "them", scopes=("read",)).id
    with database.reading() as session:
        caller = find_caller(session, key, "secret")
        assert caller is not None
        assert (caller.tenant, caller.key_id, caller.scopes) == ("them", id, frozenset({"read"}))
        assert find_caller(session, key, "other secret") is None
        assert find_caller(session, new_key(), "secret") is None
        assert find_caller(session, "", "secret") is None


def test_a_stored_key_cannot_be_read_back(database: Database) -> None:
    key = new_key()
    with database.writing() as session:
        create_key(session, key, "secret")
    with database.reading() as session:
        stored = str(session.execute(text("SELECT * FROM api_keys")).all())
    assert key not in stored
    assert key.removeprefix("jactus_")[:8] not in stored


def test_a_key_with_an_id_takes_the_place_of_the_one_before(database: Database) -> None:
    old, new = new_key(), new_key()
    for key in (old, new, new):
        with database.writing() as session:
            create_key(session, key, "secret", id="key_configured")
    with database.reading() as session:
        assert find_caller(session, old, "secret") is None
        assert find_caller(session, new, "secret") is not None
        assert len(list_keys(session, None, 10)) == 1


def test_a_revoked_key_opens_nothing(database: Database) -> None:
    key = new_key()
    with database.writing() as session:
        id = create_key(session, key, "secret").id
    for _ in range(2):
        with database.writing() as session:
            revoke_key(session, id)
    with database.reading() as session:
        assert find_caller(session, key, "secret") is None
        with pytest.raises(NotFound):
            revoke_key(session, "key_other")


def test_the_last_use_is_noted(database: Database) -> None:
    key = new_key()
    with database.writing() as session:
        assert create_key(session, key, "secret").last_used_at is None
    with database.reading() as session:
        caller = find_caller(session, key, "secret")
        assert caller is not None
        assert caller.scopes == frozenset(SCOPES)
    note_use(database, caller)
    with database.reading() as session:
        [row] = list_keys(session, None, 10)
        assert row.last_used_at is not None


def test_keys_differ_and_a_typing_error_shows() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert is_well_formed(key)
        swapped = "a" if key[12] != "a" else "b"
        assert not is_well_formed(key[:12] + swapped + key[13:])
        assert not is_well_formed(key[:-1])
    assert not is_well_formed("")
