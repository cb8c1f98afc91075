"""All SQL about jobs. Every change of status goes through `_move`, which also writes the event.

A worker holds a job by a lease: a random token and a deadline that it keeps pushing back. Every write a worker makes
names its token, so a worker that was given up for dead can change nothing when it wakes up.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import CursorResult, func, or_, select, update
from sqlalchemy.orm import Session

from jactus_core.config import CompressionConfig, Hyperparameters
from jactus_core.errors import JactusError
from jobs import schemas, states
from jobs.clock import new_id, now
from jobs.errors import NotFound, WrongState
from jobs.states import Move, Status
from jobs.tables import Artifact, Event, Job

NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_expires_at": None}


@dataclass(frozen=True)
class Lease:
    """A worker's hold on a job."""

    job_id: str
    token: str
    attempt: int


def create(session: Session, tenant: str, request: schemas.JobCreate, revision: str | None) -> Job:
    """A queued job with every default of its configuration filled in."""
    config = CompressionConfig(budgets=request.budgets, seed=request.seed, **request.hyperparameters.model_dump())
    job = Job(
        id=new_id("job"),
        tenant=tenant,
        status=Status.QUEUED,
        task=request.task,
        model=request.model,
        revision=revision,
        dataset_id=request.dataset,
        config=config.model_dump(mode="json"),
        user_metadata=request.metadata,
        attempt=0,
        last_event=0,
        created_at=now(),
    )
    session.add(job)
    session.flush()
    _append_event(session, job.id, "status", {"status": Status.QUEUED})
    return job


def find(session: Session, tenant: str, id: str) -> Job:
    found = session.get(Job, id)
    if found is None or found.tenant != tenant:
        raise NotFound("job", id)
    return found


def list_jobs(session: Session, tenant: str, status: Status | None, after: str | None, limit: int) -> list[Job]:
    """Newest first; `limit` + 1 rows, so that the caller sees whether there are more."""
    query = select(Job).where(Job.tenant == tenant).order_by(Job.id.desc()).limit(limit + 1)
    if status is not None:
        query = query.where(Job.status == status)
    return list(session.scalars(query if after is None else query.where(Job.id < after)))


def events(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    """In order, from the first number past `after`; `limit` + 1 rows."""
    query = select(Event).where(Event.job_id == job_id, Event.number > after).order_by(Event.number)
    return list(session.scalars(query.limit(limit + 1)))


def artifacts(session: Session, job_id: str) -> list[Artifact]:
    return list(session.scalars(select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.path)))


def artifact(session: Session, job_id: str, path: str) -> Artifact:
    found = session.get(Artifact, (job_id, path))
    if found is None:
        raise NotFound("artifact", path)
    return found


def describe(job: Job) -> schemas.Job:
    """The job as the API shows it."""
    config = CompressionConfig.model_validate(job.config)
    return schemas.Job.model_validate(
        {
            **{name: getattr(job, name) for name in schemas.Job.model_fields if hasattr(job, name)},
            "dataset": job.dataset_id,
            "budgets": config.budgets,
            "seed": config.seed,
            "hyperparameters": Hyperparameters(**config.model_dump(include=set(Hyperparameters.model_fields))),
            "metadata": job.user_metadata,
        }
    )


def request_cancel(session: Session, job: Job) -> None:
    """Stop the job: at once when it waits, through its worker when it runs. Asking again changes nothing."""
    if job.status in (Status.CANCELLED, Status.CANCELLING):
        return
    stopped = _move(session, job.id, states.CANCEL_QUEUED, finished_at=now())
    if not stopped and not _move(session, job.id, states.CANCEL_RUNNING):
        session.refresh(job)
        raise WrongState(f"Job '{job.id}' is {job.status.value} already and cannot be cancelled.")


def mark_sent(session: Session, job_id: str) -> None:
    session.execute(update(Job).where(Job.id == job_id).values(sent_at=now()))


# What a worker does


def claim(session: Session, job_id: str, lease_seconds: float) -> Lease | None:
    """Take a queued job, or None when somebody else has it or it waits no longer."""
    token = secrets.token_hex(16)
    deadline = now() + timedelta(seconds=lease_seconds)
    fields: dict[str, Any] = {"attempt": Job.attempt + 1, "started_at": func.coalesce(Job.started_at, now())}
    if not _move(session, job_id, states.CLAIM, lease_token=token, lease_expires_at=deadline, **fields):
        return None
    attempt = session.scalars(select(Job.attempt).where(Job.id == job_id)).one()
    return Lease(job_id, token, attempt)


def renew(session: Session, lease: Lease, lease_seconds: float) -> Status | None:
    """Push the deadline back; the job's status, or None when the lease is lost."""
    deadline = now() + timedelta(seconds=lease_seconds)
    held = update(Job).where(*_held(lease)).values(lease_expires_at=deadline).returning(Job.status)
    return session.execute(held).scalar_one_or_none()


def record_progress(session: Session, lease: Lease, stage: str, fraction: float, note: str) -> None:
    written = update(Job).where(*_held(lease)).values(stage=stage, progress=fraction)
    if _changed(session, written):
        _append_event(session, lease.job_id, "progress", {"stage": stage, "fraction": fraction, "note": note})


def succeed(session: Session, lease: Lease, result: dict[str, Any], files: list[Artifact]) -> bool:
    """Finish with a result; False when the lease is lost or the job is being cancelled."""
    done = _move(session, lease.job_id, states.SUCCEED, lease, result=result, finished_at=now(), **NO_LEASE)
    if done:
        session.add_all(files)
    return done


def fail(session: Session, lease: Lease, error: JactusError) -> bool:
    return _move(session, lease.job_id, states.FAIL, lease, error=error.as_dict(), finished_at=now(), **NO_LEASE)


def confirm_stopped(session: Session, lease: Lease) -> bool:
    return _move(session, lease.job_id, states.STOPPED, lease, finished_at=now(), **NO_LEASE)


# What the sweep does


def take_back_dead(session: Session, max_attempts: int) -> None:
    """Requeue, fail or bury every job whose worker has gone silent."""
    held = Job.status.in_((Status.RUNNING, Status.CANCELLING))
    for job in session.scalars(select(Job).where(held, Job.lease_expires_at < now())).all():
        assert job.lease_token is not None, "a held job has a lease"
        lease = Lease(job.id, job.lease_token, job.attempt)
        if job.status == Status.CANCELLING:
            _move(session, job.id, states.BURY, lease, finished_at=now(), **NO_LEASE)
        elif job.attempt < max_attempts:
            _move(session, job.id, states.REQUEUE, lease, sent_at=None, stage=None, progress=0.0, **NO_LEASE)
        else:
            _move(session, job.id, states.GIVE_UP, lease, error=_lost(job).as_dict(), finished_at=now(), **NO_LEASE)


def waiting_unsent(session: Session, older_than_seconds: float) -> list[str]:
    """Queued jobs, oldest first, whose message was never sent or long ago."""
    long_ago = now() - timedelta(seconds=older_than_seconds)
    unsent = or_(Job.sent_at.is_(None), Job.sent_at < long_ago)
    return list(session.scalars(select(Job.id).where(Job.status == Status.QUEUED, unsent).order_by(Job.id)))


class WorkerLost(JactusError):
    """The worker died under the job once too often."""

    code = "worker_lost"


def _lost(job: Job) -> WorkerLost:
    return WorkerLost(f"The worker died under this job {job.attempt} times; see its log, then create the job again.")


def _held(lease: Lease) -> tuple[Any, ...]:
    return Job.id == lease.job_id, Job.lease_token == lease.token


def _move(session: Session, job_id: str, move: Move, lease: Lease | None = None, **fields: Any) -> bool:
    """Make the move if the job is in its source status (and under this lease); write its event."""
    assert lease is not None or not move.needs_lease
    where = [Job.id == job_id, Job.status == move.source]
    if lease is not None:
        where.append(Job.lease_token == lease.token)
    if not _changed(session, update(Job).where(*where).values(status=move.target, **fields)):
        return False
    data: dict[str, Any] = {"status": move.target}
    if "error" in fields:
        data["error"] = fields["error"]
    _append_event(session, job_id, "status", data)
    return True


def _changed(session: Session, statement: Any) -> bool:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def _append_event(session: Session, job_id: str, type: str, data: dict[str, Any]) -> None:
    """Number it under the job's row lock, so that numbers have no gap and no twin."""
    counted = update(Job).where(Job.id == job_id).values(last_event=Job.last_event + 1)
    number = session.execute(
        counted.returning(Job.last_event).execution_options(synchronize_session=False)
    ).scalar_one()
    session.add(Event(job_id=job_id, number=number, type=type, data=data, created_at=now()))
    session.flush()
