"""What a worker does with a job, from claim to end, and what the sweep does when the worker is dead.

A worker holds a job by a lease: a random token and a deadline that it keeps pushing back. Every write a worker makes
names its token, so a worker that was given up for dead can change nothing when it wakes up.
"""

from __future__ import annotations

import math
import secrets
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from jactus_core.errors import JactusError
from jobs import leftovers, limits, moves, states, totals
from jobs.clock import now
from jobs.moves import Lease as Lease
from jobs.moves import held
from jobs.moves import stages_of as stages_of
from jobs.states import Status
from jobs.tables import Artifact, Attempt, Job

NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_expires_at": None}
WAITING_AGAIN: dict[str, Any] = {**NO_LEASE, "sent_at": None, "stage": None, "progress": 0.0}

Outcome = Literal["succeeded", "failed", "cancelled", "lost", "released"]


def files_of(job_id: str, attempt: int) -> str:
    """Where an attempt publishes."""
    return f"{moves.folder_of(job_id)}/attempt-{attempt}"


def log_of(job_id: str, attempt: int) -> str:
    """Where an attempt's log lies, also when the attempt fails; it goes with the job."""
    return f"{moves.folder_of(job_id)}/logs/attempt-{attempt}.log"


def claim(session: Session, job_id: str, lease_seconds: float, worker: str = "", max_running: int = 0) -> Lease | None:
    """Take a queued job, or None when somebody else has it, it waits no longer, or its API key runs enough jobs.

    `max_running` is for keys without a limit of their own; a job held back is sent again once there is room.
    """
    if not limits.may_start(session, job_id, max_running):
        mark_unsent(session, [job_id])
        return None
    token, moment = secrets.token_hex(16), now()
    deadline = moment + timedelta(seconds=lease_seconds)
    fields: dict[str, Any] = {"attempt": Job.attempt + 1, "started_at": func.coalesce(Job.started_at, moment)}
    if not moves.make(session, job_id, states.CLAIM, lease_token=token, lease_expires_at=deadline, **fields):
        return None
    number = session.scalars(select(Job.attempt).where(Job.id == job_id)).one()
    session.add(Attempt(job_id=job_id, number=number, worker=worker, outcome="running", seconds={}, started_at=moment))
    return Lease(job_id, token, number)


def renew(session: Session, lease: Lease, lease_seconds: float) -> Status | None:
    """Push the deadline back; the job's status, or None when the lease is lost."""
    deadline = now() + timedelta(seconds=lease_seconds)
    pushed = update(Job).where(*held(lease)).values(lease_expires_at=deadline).returning(Job.status)
    return session.execute(pushed).scalar_one_or_none()


def record_progress(session: Session, lease: Lease, stage: str, fraction: float, note: str) -> None:
    if moves.changed(session, update(Job).where(*held(lease)).values(stage=stage, progress=fraction)):
        data = {"stage": stage, "fraction": fraction, "note": note}
        moves.append_event(session, lease.job_id, "progress", data)


def succeed(session: Session, lease: Lease, result: dict[str, Any], files: list[Artifact]) -> bool:
    """Finish with a result; False when the lease is lost or the job is being cancelled.

    True as well when this very attempt has succeeded before: an answer that was lost on its way is asked for again.
    """
    if moves.make(session, lease.job_id, states.SUCCEED, lease, result=result, finished_at=now(), **NO_LEASE):
        _end(session, lease, "succeeded", result.get("seconds"))
        session.add_all(files)
        return True
    attempt = session.get(Attempt, (lease.job_id, lease.attempt))
    return attempt is not None and attempt.outcome == "succeeded"


def fail(session: Session, lease: Lease, error: JactusError, seconds: dict[str, float] | None = None) -> bool:
    given = {"error": error.as_dict(), "finished_at": now()}
    return moves.make(session, lease.job_id, states.FAIL, lease, **given, **NO_LEASE) and _end(
        session, lease, "failed", seconds, error
    )


def confirm_stopped(session: Session, lease: Lease, seconds: dict[str, float] | None = None) -> bool:
    return moves.make(session, lease.job_id, states.STOPPED, lease, finished_at=now(), **NO_LEASE) and _end(
        session, lease, "cancelled", seconds
    )


def release(session: Session, lease: Lease, seconds: dict[str, float] | None = None) -> bool:
    """Hand a running job back to the queue; it costs none of its attempts."""
    spared = {"attempts_before_retry": Job.attempts_before_retry + 1}
    return moves.make(session, lease.job_id, states.RELEASE, lease, **spared, **WAITING_AGAIN) and _end(
        session, lease, "released", seconds
    )


def give_back(
    session: Session, lease: Lease, error: JactusError, max_attempts: int, seconds: dict[str, float] | None = None
) -> bool:
    """End an attempt that failed for no fault of the job's own: it waits again, or fails with its last attempt."""
    job = session.get_one(Job, lease.job_id)
    if job.attempt - job.attempts_before_retry >= max_attempts:
        return fail(session, lease, error, seconds)
    return moves.make(session, lease.job_id, states.REQUEUE, lease, **WAITING_AGAIN) and _end(
        session, lease, "failed", seconds, error
    )


def take_back_dead(session: Session, max_attempts: int) -> None:
    """Requeue, fail or bury every job whose worker has gone silent."""
    with_worker = Job.status.in_((Status.RUNNING, Status.CANCELLING))
    for job in session.scalars(select(Job).where(with_worker, Job.lease_expires_at < now())).all():
        assert job.lease_token is not None, "a held job has a lease"
        lease = Lease(job.id, job.lease_token, job.attempt)
        spent = job.attempt - job.attempts_before_retry
        if job.status == Status.CANCELLING:
            moved = moves.make(session, job.id, states.BURY, lease, finished_at=now(), **NO_LEASE)
        elif spent < max_attempts:
            moved = moves.make(session, job.id, states.REQUEUE, lease, **WAITING_AGAIN)
        else:
            error = WorkerLost(f"The worker died under this job {spent} times; see its log, then retry the job.")
            fields = {"error": error.as_dict(), "finished_at": now()}
            moved = moves.make(session, job.id, states.GIVE_UP, lease, **fields, **NO_LEASE)
        if moved:
            _end(session, lease, "lost", None)
            totals.add(session, "lease_expiries")


def waiting_classes(session: Session) -> list[str]:
    """Device classes that some job waits for."""
    return list(session.scalars(select(Job.device_class).where(Job.status == Status.QUEUED).distinct()))


def count_sent(session: Session, device_class: str) -> int:
    """How many waiting jobs of a class are marked as sent."""
    waiting = Job.status == Status.QUEUED, Job.device_class == device_class
    return session.scalars(select(func.count(Job.sent_at)).where(*waiting)).one()


def take_unsent(
    session: Session, device_class: str, limit: int, older_than_seconds: float = math.inf, max_running: int = 0
) -> list[str]:
    """Mark waiting jobs of a class, oldest first, that were never sent, or as long ago as that; returns their ids.

    Of a key that may run only so many jobs at a time, no more than may start now. Nobody else gets the same ones.
    """
    unsent: list[ColumnElement[bool]] = [Job.sent_at.is_(None)]
    if older_than_seconds < math.inf:
        unsent.append(Job.sent_at < now() - timedelta(seconds=older_than_seconds))
    waiting = Job.status == Status.QUEUED, Job.device_class == device_class, or_(*unsent)
    free = limits.free_places(session, max_running)
    found: list[str] = []
    last = ""
    while len(found) < limit:
        full = [key_id for key_id, places in free.items() if not places]
        more = select(Job.id, Job.key_id).where(*waiting, Job.key_id.not_in(full), Job.id > last)
        page = session.execute(more.order_by(Job.id).limit(limit)).all()
        for id, key_id in page:
            places = free.get(key_id)
            if places != 0:
                found.append(id)
            if places:
                free[key_id] = places - 1
        if len(page) < limit:
            break
        last = page[-1].id
    taken = update(Job).where(Job.id.in_(found[:limit]), *waiting).values(sent_at=now()).returning(Job.id)
    return sorted(session.scalars(taken.execution_options(synchronize_session=False)))


def mark_unsent(session: Session, job_ids: list[str]) -> None:
    """Those of them that wait are sent again."""
    session.execute(update(Job).where(Job.id.in_(job_ids), Job.status == Status.QUEUED).values(sent_at=None))


class WorkerLost(JactusError):
    """The worker died under the job once too often."""

    code = "worker_lost"


def _end(
    session: Session,
    lease: Lease,
    outcome: Outcome,
    seconds: dict[str, float] | None,
    error: JactusError | None = None,
) -> Literal[True]:
    """Close the attempt; what it published goes unless it succeeded."""
    attempt = session.get_one(Attempt, (lease.job_id, lease.attempt))
    attempt.outcome, attempt.finished_at, attempt.seconds = outcome, now(), dict(seconds or {})
    attempt.error = None if error is None else dict(error.as_dict())
    totals.add(session, "attempts", outcome)
    for stage, spent in attempt.seconds.items():
        totals.add(session, "stage_runs", stage)
        totals.add(session, "stage_seconds", stage, spent)
    if outcome != "succeeded":
        leftovers.leave(session, files_of(lease.job_id, lease.attempt))
    return True
