"""What is deleted when its time has come."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs import moves, store, uploads
from jobs.clock import id_at, now
from jobs.states import FINAL
from jobs.tables import Artifact, Attempt, Delivery, Event, IdempotencyKey, Job, Leftover, Upload

ROWS_KEPT_HOURS = 24
"""Rows of a deleted job stay so long, for whoever still holds a link to it; nobody sees them."""
ANSWERS_KEPT_HOURS = 24
DELIVERIES_KEPT_DAYS = 30
AT_ONCE = 100


def expire(session: Session) -> None:
    """Delete jobs past their retention, uploads that were never completed, old answers and old deliveries."""
    moment = now()
    over = select(Job).where(Job.expires_at <= moment, Job.deleted_at.is_(None), Job.status.in_(FINAL))
    for job in session.scalars(over.limit(AT_ONCE)).all():
        store.delete(session, job)
    for upload in session.scalars(select(Upload).where(Upload.expires_at <= moment).limit(AT_ONCE)).all():
        uploads.drop(session, upload)
    old = moment - timedelta(hours=ANSWERS_KEPT_HOURS)
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < old))
    last_kept = id_at("delivery", moment - timedelta(days=DELIVERIES_KEPT_DAYS))
    session.execute(delete(Delivery).where(Delivery.id < last_kept, Delivery.next_at.is_(None)))
    _purge(session)


def _purge(session: Session) -> None:
    """Remove the rows of jobs deleted long ago, unless files of theirs are still to go."""
    old = now() - timedelta(hours=ROWS_KEPT_HOURS)
    deleted = select(Job.id).where(Job.deleted_at < old).limit(AT_ONCE)
    folders = {moves.folder_of(id): id for id in session.scalars(deleted)}
    waiting = set(session.scalars(select(Leftover.prefix).where(Leftover.prefix.in_(folders))))
    gone = [id for folder, id in folders.items() if folder not in waiting]
    for table in (Event, Artifact, Attempt):
        session.execute(delete(table).where(table.job_id.in_(gone)))
    session.execute(delete(Job).where(Job.id.in_(gone)))
