"""API keys: shown once, stored as keyed hashes, limited by scopes."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, get_args

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.clock import new_id, now
from jobs.database import Database, newest_first
from jobs.errors import NotFound, WrongState
from jobs.schemas import KeyCreate, Scope
from jobs.tables import ApiKey

SCOPES: tuple[Scope, ...] = get_args(Scope)
"""read: look and download; write: create, change and delete; admin: make and revoke the keys of every tenant."""

PREFIX = "jactus_"
RANDOM_BYTES = 24
CHECKSUM_DIGITS = 8
DEFAULT_TENANT = "default"
CONFIGURED = "key_configured"
"""Id of the key that the settings name."""
USE_NOTED_SECONDS = 60


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    tenant: str
    key_id: str
    scopes: frozenset[str] = frozenset(SCOPES)
    limits: dict[str, Any] = field(default_factory=dict)
    last_used_at: datetime | None = None


def new_key() -> str:
    """`jactus_`, 32 random characters, and a checksum by which a mistyped or leaked key is recognised."""
    random = secrets.token_urlsafe(RANDOM_BYTES)
    return f"{PREFIX}{random}{_checksum(random)}"


def is_well_formed(key: str) -> bool:
    random, checksum = key[len(PREFIX) : -CHECKSUM_DIGITS], key[-CHECKSUM_DIGITS:]
    return key.startswith(PREFIX) and checksum == _checksum(random)


def hash_key(key: str, secret: str) -> str:
    return hmac.new(secret.encode(), key.encode(), hashlib.sha256).hexdigest()


def find_caller(session: Session, key: str, secret: str) -> Caller | None:
    """Whose key this is; None if it is nobody's or revoked."""
    found = session.scalars(select(ApiKey).where(ApiKey.key_hash == hash_key(key, secret))).one_or_none()
    if found is None or found.revoked_at is not None:
        return None
    return Caller(found.tenant, found.id, frozenset(found.scopes), found.limits, found.last_used_at)


def note_use(database: Database, caller: Caller) -> None:
    """Remember that the key is in use, once a minute at most."""
    if caller.last_used_at is None or now() - caller.last_used_at > timedelta(seconds=USE_NOTED_SECONDS):
        with database.writing() as session:
            session.execute(update(ApiKey).where(ApiKey.id == caller.key_id).values(last_used_at=now()))


def make_key(session: Session, request: KeyCreate, secret: str) -> tuple[ApiKey, str]:
    """A new key as it is asked for, and the key itself, which nobody can look up later."""
    key, own = new_key(), request.limits.model_dump(exclude_none=True)
    return create_key(session, key, secret, request.tenant, request.name, request.scopes, own), key


def create_key(
    session: Session,
    key: str,
    secret: str,
    tenant: str = DEFAULT_TENANT,
    name: str = "",
    scopes: tuple[Scope, ...] = SCOPES,
    limits: dict[str, Any] | None = None,
    id: str | None = None,
) -> ApiKey:
    """Make `key` valid. With an `id` it takes the place of the key that had it."""
    made = ApiKey(
        id=id or new_id("key"),
        key_hash=hash_key(key, secret),
        tenant=tenant,
        name=name,
        hint=key[-4:],
        scopes=list(scopes),
        limits=limits or {},
        created_at=now(),
        last_used_at=None,
        revoked_at=None,
    )
    return session.merge(made)


def list_keys(session: Session, after: str | None, limit: int) -> list[ApiKey]:
    """Newest first; `limit` + 1 rows."""
    return newest_first(session, select(ApiKey), ApiKey.id, after, limit)


def update_key(session: Session, id: str, name: str | None, limits: dict[str, Any] | None) -> ApiKey:
    """Rename the key or replace its limits; None leaves them as they are."""
    found = _changeable(session, id)
    if found.revoked_at is not None:
        raise WrongState(f"Key '{id}' is revoked; make a new one.")
    found.name = found.name if name is None else name
    found.limits = found.limits if limits is None else limits
    return found


def revoke_key(session: Session, id: str) -> ApiKey:
    """From now on the key opens nothing; revoking it again changes nothing."""
    found = _changeable(session, id)
    found.revoked_at = found.revoked_at or now()
    return found


def find_key(session: Session, id: str) -> ApiKey:
    found = session.get(ApiKey, id)
    if found is None:
        raise NotFound("key", id)
    return found


def _changeable(session: Session, id: str) -> ApiKey:
    found = find_key(session, id)
    if id == CONFIGURED:
        raise WrongState("This key comes from the setting JACTUS_API_KEY; change the setting and start again.")
    return found


def _checksum(random: str) -> str:
    return f"{zlib.crc32(random.encode()):0{CHECKSUM_DIGITS}x}"
