"""What webhooks are to be told: written with what it tells, sent later, as often as it takes.

A delivery is a row of the very transaction that changes the job, so none is lost and none is invented. A sender takes
a due one by pushing `next_at` forward: that is its lease, and what it reports counts only while the lease is its own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs import webhooks
from jobs.clock import new_id, now
from jobs.database import newest_first
from jobs.errors import NotFound, WrongState
from jobs.states import Status
from jobs.tables import Delivery, Job, Webhook

logger = logging.getLogger(__name__)

RETRY_SECONDS = (5, 30, 2 * 60, 10 * 60, 3600, 3 * 3600, 8 * 3600, 24 * 3600)
"""Pauses after the first failure, the second, …; one failure more and the delivery is given up."""
JITTER = 0.2
GONE = 410
MAX_ERROR = 300  # characters


@dataclass(frozen=True)
class Claim:
    """A sender's hold on a delivery, with all that it takes to send it."""

    id: str
    webhook_id: str
    url: str
    sealed_secret: str
    payload: dict[str, Any]
    attempt: int
    leased_until: datetime


def announce(session: Session, job_id: str, status: Status) -> None:
    """Tell everyone who wants to know of a job's new status. They are locked, lest one be deleted meanwhile."""
    listening = select(Webhook.id, Webhook.events).join(Job, Job.tenant == Webhook.tenant)
    listening = listening.where(Job.id == job_id, Webhook.disabled_at.is_(None))
    event = f"job.{status.value}"
    for id, events in session.execute(listening.with_for_update(read=True, key_share=True, of=Webhook)).all():
        if "*" in events or event in events:
            _add(session, id, event, {"id": job_id, "status": status.value})


def add_test(session: Session, webhook: Webhook) -> Delivery:
    """A message about nothing, whatever events the webhook wants."""
    _check_enabled(webhook)
    return _add(session, webhook.id, "webhook.test", {"id": webhook.id})


def find(session: Session, webhook: Webhook, id: str) -> Delivery:
    found = session.get(Delivery, id)
    if found is None or found.webhook_id != webhook.id:
        raise NotFound("delivery", id)
    return found


def list_deliveries(session: Session, webhook: Webhook, after: str | None, limit: int) -> list[Delivery]:
    """Newest first; `limit` + 1 rows."""
    query = select(Delivery).where(Delivery.webhook_id == webhook.id)
    return newest_first(session, query, Delivery.id, after, limit)


def send_again(session: Session, webhook: Webhook, delivery: Delivery) -> None:
    """Send it now, whatever became of it, with all its attempts."""
    _check_enabled(webhook)
    delivery.state, delivery.attempts, delivery.next_at = "pending", 0, now()
    delivery.last_status = delivery.last_error = delivery.finished_at = None


def due(session: Session, busy: Collection[str], limit: int) -> list[tuple[str, str]]:
    """The oldest due delivery of every webhook that is not busy, as webhook and delivery."""
    waiting = select(Delivery.webhook_id, func.min(Delivery.id)).group_by(Delivery.webhook_id)
    waiting = waiting.where(Delivery.next_at <= now(), Delivery.webhook_id.not_in(busy))
    return [(webhook, id) for webhook, id in session.execute(waiting.order_by(func.min(Delivery.id)).limit(limit))]


def claim(session: Session, id: str, lease_seconds: float) -> Claim | None:
    """Take a due delivery, or None when another sender has it or it is over."""
    moment = now()
    taken = update(Delivery).where(Delivery.id == id, Delivery.next_at <= moment)
    taken = taken.values(next_at=moment + timedelta(seconds=lease_seconds), attempts=Delivery.attempts + 1)
    if session.execute(taken.returning(Delivery.id)).scalar_one_or_none() is None:
        return None
    delivery = session.get_one(Delivery, id)
    webhook = session.get_one(Webhook, delivery.webhook_id)
    if webhook.disabled_at is not None:  # while the delivery was being written
        delivery.state, delivery.last_error = "failed", webhook.disabled_reason
        delivery.next_at, delivery.finished_at = None, moment
        return None
    assert delivery.next_at is not None
    return Claim(
        id, webhook.id, webhook.url, webhook.sealed_secret, delivery.payload, delivery.attempts, delivery.next_at
    )


def accepted(session: Session, claim: Claim, status: int) -> None:
    """The webhook took it."""
    failing = update(Webhook).where(Webhook.id == claim.webhook_id, Webhook.failing_since.is_not(None))
    session.execute(failing.values(failing_since=None))
    _report(session, claim, state="delivered", last_status=status, last_error=None, next_at=None, finished_at=now())


def refused(session: Session, claim: Claim, status: int | None, error: str, disable_hours: float) -> None:
    """It did not arrive: later once more, unless that is hopeless."""
    webhook = session.get(Webhook, claim.webhook_id, with_for_update={"key_share": True})
    if webhook is None:
        return
    moment = now()
    webhook.failing_since = webhook.failing_since or moment
    outcome: dict[str, Any] = {"last_status": status, "last_error": error[:MAX_ERROR]}
    if claim.attempt > len(RETRY_SECONDS):
        outcome |= {"state": "failed", "next_at": None, "finished_at": moment}
    else:
        outcome |= {"next_at": moment + _pause(claim.attempt)}
    if not _report(session, claim, **outcome) or webhook.disabled_at is not None:
        return
    if status == GONE:
        _give_up_on(session, webhook, "It answered 410 Gone.")
    elif webhook.failing_since < moment - timedelta(hours=disable_hours):
        _give_up_on(session, webhook, f"It accepted nothing for {disable_hours:g} hours; the last try: {error}")


def _report(session: Session, claim: Claim, **outcome: Any) -> bool:
    """Write down what came of an attempt, if the delivery is still this sender's."""
    held = (Delivery.id == claim.id, Delivery.next_at == claim.leased_until)
    written = update(Delivery).where(*held).values(**outcome).returning(Delivery.id)
    return session.execute(written).scalar_one_or_none() is not None


def _give_up_on(session: Session, webhook: Webhook, reason: str) -> None:
    logger.warning("webhook %s is disabled: %s", webhook.id, reason)
    webhooks.disable(session, webhook, reason)


def _pause(attempt: int) -> timedelta:
    return timedelta(seconds=RETRY_SECONDS[attempt - 1] * random.uniform(1 - JITTER, 1 + JITTER))


def _add(session: Session, webhook_id: str, event: str, data: dict[str, Any]) -> Delivery:
    moment = now()
    delivery = Delivery(
        id=new_id("delivery"),
        webhook_id=webhook_id,
        event=event,
        payload={"type": event, "timestamp": moment.isoformat().replace("+00:00", "Z"), "data": data},
        state="pending",
        attempts=0,
        last_status=None,
        last_error=None,
        created_at=moment,
        next_at=moment,
        finished_at=None,
    )
    session.add(delivery)
    return delivery


def _check_enabled(webhook: Webhook) -> None:
    if webhook.disabled_at is not None:
        raise WrongState(f"Webhook '{webhook.id}' is disabled; enable it first.")
