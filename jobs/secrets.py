"""Stored secrets, such as hub tokens: sealed when they come in, used by name, never given back."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs import moves
from jobs.clock import now
from jobs.errors import NotFound, ServiceError
from jobs.settings import Settings
from jobs.tables import Secret
from jobs.vault import Vault


class UnreadableSecret(ServiceError):
    """A secret that this service cannot open any more."""

    code = "unreadable_secret"
    status = 409


def put(session: Session, settings: Settings, tenant: str, name: str, value: str) -> Secret:
    """Keep the value under this name, in place of the one before."""
    sealed = Vault.of(settings).seal(value)
    return session.merge(Secret(tenant=tenant, name=name, sealed=sealed, created_at=now()))


def find(session: Session, tenant: str, name: str, param: str | None = None) -> Secret:
    found = session.get(Secret, (tenant, name))
    if found is None:
        raise NotFound("secret", name, param)
    return found


def list_secrets(session: Session, tenant: str, after: str | None, limit: int) -> list[Secret]:
    """By name; `limit` + 1 rows."""
    query = select(Secret).where(Secret.tenant == tenant).order_by(Secret.name).limit(limit + 1)
    return list(session.scalars(query if after is None else query.where(Secret.name > after)))


def remove(session: Session, tenant: str, name: str) -> None:
    if not moves.changed(session, delete(Secret).where(Secret.tenant == tenant, Secret.name == name)):
        raise NotFound("secret", name)


def reveal(session: Session, settings: Settings, tenant: str, name: str) -> str:
    """The value, for use at once; raises NotFound or UnreadableSecret."""
    try:
        return Vault.of(settings).unseal(find(session, tenant, name, "secret").sealed)
    except ValueError as error:
        message = f"Secret '{name}' was stored under another JACTUS_SECRET_KEY; store it again."
        raise UnreadableSecret(message, "secret") from error
