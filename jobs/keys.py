"""API keys: shown once, stored as keyed hashes."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.tables import ApiKey

PREFIX = "jactus_"
DEFAULT_TENANT = "default"


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str, secret: str) -> str:
    return hmac.new(secret.encode(), key.encode(), hashlib.sha256).hexdigest()


def tenant_of(session: Session, key: str, secret: str) -> str | None:
    """The tenant that `key` belongs to, or None."""
    known = session.get(ApiKey, hash_key(key, secret))
    return known.tenant if known else None


def accept_key(session: Session, key: str, secret: str, tenant: str = DEFAULT_TENANT) -> None:
    """Make `key` valid; accepting it again changes nothing."""
    session.merge(ApiKey(key_hash=hash_key(key, secret), tenant=tenant, hint=key[-4:], created_at=now()))
