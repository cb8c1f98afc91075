"""The only place where a job's status changes, and the only one that writes its events and tells webhooks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from jobs import deliveries, leftovers
from jobs.clock import now
from jobs.states import FINAL, Move
from jobs.tables import Event, Job


@dataclass(frozen=True)
class Lease:
    """A worker's hold on a job."""

    job_id: str
    token: str
    attempt: int


def folder_of(job_id: str) -> str:
    """Where everything of a job lies in storage."""
    return f"jobs/{job_id}"


def stages_of(job_id: str) -> str:
    """Where finished stages are kept for an attempt on another machine, until the job is final."""
    return f"{folder_of(job_id)}/stages"


def held(lease: Lease) -> tuple[Any, ...]:
    """Conditions that are true while the lease is."""
    return Job.id == lease.job_id, Job.lease_token == lease.token


def make(session: Session, job_id: str, move: Move, lease: Lease | None = None, **fields: Any) -> bool:
    """Make the move if the job is in its source status (and under this lease); write its event."""
    assert lease is not None or not move.needs_lease
    where = [Job.id == job_id, Job.status == move.source, Job.deleted_at.is_(None)]
    if lease is not None:
        where.append(Job.lease_token == lease.token)
    if not changed(session, update(Job).where(*where).values(status=move.target, **fields)):
        return False
    data: dict[str, Any] = {"status": move.target}
    if fields.get("error"):
        data["error"] = fields["error"]
    append_event(session, job_id, "status", data)
    deliveries.announce(session, job_id, move.target)
    if move.target in FINAL:
        _set_expiry(session, job_id)
        leftovers.leave(session, stages_of(job_id))
    return True


def changed(session: Session, statement: Any) -> bool:
    """Whether exactly one row was changed."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def _set_expiry(session: Session, job_id: str) -> None:
    days = session.scalars(select(Job.retention_days).where(Job.id == job_id)).one()
    if days is not None:
        session.execute(update(Job).where(Job.id == job_id).values(expires_at=now() + timedelta(days=days)))


def append_event(session: Session, job_id: str, type: str, data: dict[str, Any]) -> None:
    """Number it under the job's row lock, so that numbers have no gap and no twin."""
    counted = update(Job).where(Job.id == job_id).values(last_event=Job.last_event + 1)
    number = session.execute(
        counted.returning(Job.last_event).execution_options(synchronize_session=False)
    ).scalar_one()
    session.add(Event(job_id=job_id, number=number, type=type, data=data, created_at=now()))
    session.flush()
