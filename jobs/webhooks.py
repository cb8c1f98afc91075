"""Webhooks: addresses that are told when jobs change, each with a secret that signs what it is told."""

from __future__ import annotations

import base64
import secrets

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs.clock import new_id, now
from jobs.database import newest_first
from jobs.errors import NotFound, ServiceError
from jobs.schemas import WebhookCreate, WebhookUpdate
from jobs.tables import Delivery, Webhook
from jobs.vault import Vault

MAX_PER_TENANT = 20
SECRET_PREFIX = "whsec_"  # noqa: S105 - what Standard Webhooks puts before every secret
SECRET_BYTES = 32


class TooManyWebhooks(ServiceError):
    """The tenant has as many as it may."""

    code = "too_many_webhooks"
    status = 409


def create(session: Session, tenant: str, request: WebhookCreate, vault: Vault) -> tuple[Webhook, str]:
    """The webhook and its secret, which nobody can look up later; the caller has checked the URL."""
    existing = session.scalars(select(func.count()).select_from(Webhook).where(Webhook.tenant == tenant)).one()
    if existing >= MAX_PER_TENANT:
        raise TooManyWebhooks(f"There are {existing} webhooks already, the most there may be; delete one first.")
    secret = new_secret()
    webhook = Webhook(
        id=new_id("webhook"),
        tenant=tenant,
        url=request.url,
        events=list(request.events),
        description=request.description,
        sealed_secret=vault.seal(secret),
        failing_since=None,
        disabled_at=None,
        disabled_reason=None,
        created_at=now(),
    )
    session.add(webhook)
    return webhook, secret


def find(session: Session, tenant: str, id: str) -> Webhook:
    found = session.get(Webhook, id)
    if found is None or found.tenant != tenant:
        raise NotFound("webhook", id)
    return found


def list_webhooks(session: Session, tenant: str, after: str | None, limit: int) -> list[Webhook]:
    """Newest first; `limit` + 1 rows, so that the caller sees whether there are more."""
    query = select(Webhook).where(Webhook.tenant == tenant)
    return newest_first(session, query, Webhook.id, after, limit)


def change(session: Session, webhook: Webhook, request: WebhookUpdate) -> None:
    """Change what the request names; the caller has checked the URL. A new URL starts with a clean record."""
    given = request.model_dump(exclude_none=True, include={"url", "description"})
    for name, value in given.items():
        setattr(webhook, name, value)
    if request.events is not None:
        webhook.events = list(request.events)
    if request.url is not None:
        webhook.failing_since = None
    if request.enabled:
        webhook.failing_since = webhook.disabled_at = webhook.disabled_reason = None
    elif request.enabled is False and webhook.disabled_at is None:
        disable(session, webhook, "Its owner disabled it.")


def rotate_secret(webhook: Webhook, vault: Vault) -> str:
    """A new secret; the old one signs nothing from now on."""
    secret = new_secret()
    webhook.sealed_secret = vault.seal(secret)
    return secret


def disable(session: Session, webhook: Webhook, reason: str) -> None:
    """Send nothing any more, and give up what still waits."""
    webhook.disabled_at, webhook.disabled_reason = now(), reason
    waiting = update(Delivery).where(Delivery.webhook_id == webhook.id, Delivery.next_at.is_not(None))
    session.execute(waiting.values(state="failed", last_error=reason, next_at=None, finished_at=now()))


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
