"""One answer to a request however often it is sent: the first one, kept under the key that the client chose.

A key is reserved first, in a transaction of its own. The answer is written in the transaction of what the request
makes, and only while the reservation still holds; so there is never the one without the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from jobs import moves
from jobs.clock import now
from jobs.database import insert
from jobs.errors import IdempotencyKeyInFlight, IdempotencyKeyReused
from jobs.tables import IdempotencyKey

ABANDONED_SECONDS = 60
"""A reservation without an answer for so long is of a process that died; the next request takes it over."""


@dataclass(frozen=True)
class Reservation:
    """The right to answer first; `since` tells it from one that took it over."""

    tenant: str
    key: str
    since: datetime


@dataclass(frozen=True)
class Answer:
    status: int
    body: dict[str, Any]


def fingerprint(endpoint: str, body: str) -> str:
    """Of a request, to tell another one under the same key."""
    return hashlib.sha256(f"{endpoint}\n{body}".encode()).hexdigest()


def reserve(session: Session, tenant: str, key: str, fingerprint: str) -> Reservation | Answer:
    """The right to answer, or the answer that was given; raises IdempotencyKeyReused, IdempotencyKeyInFlight."""
    moment = now()
    mine = Reservation(tenant, key, moment)
    row = {"tenant": tenant, "key": key, "fingerprint": fingerprint, "created_at": moment}
    reserved = insert(session, IdempotencyKey).values(**row).on_conflict_do_nothing().returning(IdempotencyKey.key)
    if session.execute(reserved).one_or_none():
        return mine
    found = session.scalars(select(IdempotencyKey).where(*_row(tenant, key))).one_or_none()
    if found is not None and found.fingerprint != fingerprint:
        raise IdempotencyKeyReused(f"The Idempotency-Key '{key}' came with another request before; use a new one.")
    if found is not None and found.status is not None:
        return Answer(found.status, found.body or {})
    if found is not None and found.created_at < moment - timedelta(seconds=ABANDONED_SECONDS):
        taken_over = update(IdempotencyKey).where(*_held(Reservation(tenant, key, found.created_at)))
        if moves.changed(session, taken_over.values(created_at=moment)):
            return mine
    raise _in_flight(key)


def keep(session: Session, held: Reservation, answer: Answer) -> None:
    """Write the answer down with what it tells of; raises IdempotencyKeyInFlight when the key was taken over."""
    kept = update(IdempotencyKey).where(*_held(held)).values(status=answer.status, body=answer.body)
    if not moves.changed(session, kept):
        raise _in_flight(held.key)


def give_up(session: Session, held: Reservation) -> None:
    """The request failed: the next one under the key is the first again."""
    session.execute(delete(IdempotencyKey).where(*_held(held)))


def _row(tenant: str, key: str) -> tuple[Any, ...]:
    return IdempotencyKey.tenant == tenant, IdempotencyKey.key == key


def _held(held: Reservation) -> tuple[Any, ...]:
    unanswered = IdempotencyKey.status.is_(None)
    return *_row(held.tenant, held.key), unanswered, IdempotencyKey.created_at == held.since


def _in_flight(key: str) -> IdempotencyKeyInFlight:
    return IdempotencyKeyInFlight(f"The first request with the Idempotency-Key '{key}' is still at work; try again.")
