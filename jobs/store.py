"""All SQL about jobs as their users see them: create, look, cancel, retry, delete."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from jactus_core.config import CompressionConfig, Hyperparameters
from jobs import deliveries, leftovers, moves, pace, schemas, states
from jobs.classes import DeviceClass
from jobs.clock import new_id, now
from jobs.database import newest_first
from jobs.errors import NotFound, WrongState
from jobs.keys import Caller
from jobs.states import FINAL, Status
from jobs.tables import Artifact, Attempt, Base, Dataset, Event, Job

COUNTED_PLACES = 1000
"""How far the queue is counted, so that looking at a job costs the same however many wait."""
INSERT_JOB, INSERT_EVENT = (insert(Base.metadata.tables[table.__tablename__]) for table in (Job, Event))
OWN_COLUMNS = set(schemas.Job.model_fields) & set(Job.__table__.columns.keys())


def create(
    session: Session,
    caller: Caller,
    request: schemas.JobCreate,
    dataset: Dataset,
    *,
    revision: str | None = None,
    device_class: DeviceClass = "cpu",
    needed_disk_bytes: int | None = None,
    trace: str | None = None,
    is_watched: bool = True,
) -> Job:
    """A queued job with every default of its configuration filled in; the caller has checked what it refers to, and
    perhaps that no webhook listens. The rows are written past the session, which spares a third of the time."""
    config = config_of(request, dataset)
    moment = now()
    values: dict[str, Any] = {
        "id": new_id("job"),
        "tenant": caller.tenant,
        "key_id": caller.key_id,
        "status": Status.QUEUED,
        "device_class": device_class,
        "task": config.task,
        "model": request.model,
        "revision": revision,
        "secret": request.secret,
        "dataset_id": dataset.id,
        "dataset_revision": dataset.revision or dataset.sha256,
        "config": config.model_dump(mode="json"),
        "quality_bound": request.quality_bound,
        "outputs": list(request.outputs),
        "max_runtime": request.max_runtime,
        "retention_days": request.retention_days,
        "needed_disk_bytes": needed_disk_bytes,
        "user_metadata": request.metadata,
        "progress": 0.0,
        "attempt": 0,
        "attempts_before_retry": 0,
        "last_event": 1,
        "trace": trace,
        "created_at": moment,
    }
    first = {"job_id": values["id"], "number": 1, "type": "status", "data": {"status": Status.QUEUED}}
    session.execute(INSERT_JOB, values)
    session.execute(INSERT_EVENT, {**first, "created_at": moment})
    if is_watched:
        deliveries.announce(session, values["id"], Status.QUEUED)
    return Job(**values)


def config_of(request: schemas.JobCreate, dataset: Dataset) -> CompressionConfig:
    """The whole configuration that a request means."""
    given = request.model_dump(include=set(CompressionConfig.model_fields)) | {"task": dataset.task}
    return CompressionConfig.model_validate(given | request.hyperparameters.model_dump())


def find(session: Session, tenant: str, id: str) -> Job:
    found = session.get(Job, id)
    if found is None or found.tenant != tenant or found.deleted_at is not None:
        raise NotFound("job", id)
    return found


def list_jobs(
    session: Session,
    tenant: str,
    after: str | None = None,
    limit: int = 20,
    *,
    status: Status | None = None,
    model: str | None = None,
    metadata: Sequence[tuple[str, str]] = (),
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> list[Job]:
    """Newest first; `limit` + 1 rows, so that the caller sees whether there are more."""
    query = select(Job).where(Job.tenant == tenant, Job.deleted_at.is_(None))
    if status is not None:
        query = query.where(Job.status == status)
    if model is not None:
        query = query.where(Job.model == model)
    for key, value in metadata:
        query = query.where(Job.user_metadata[key].as_string() == value)
    if created_after is not None:
        query = query.where(Job.created_at > created_after)
    if created_before is not None:
        query = query.where(Job.created_at < created_before)
    return newest_first(session, query, Job.id, after, limit)


def events(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    """In order, from the first number past `after`; `limit` + 1 rows."""
    query = select(Event).where(Event.job_id == job_id, Event.number > after).order_by(Event.number)
    return list(session.scalars(query.limit(limit + 1)))


def artifacts(session: Session, job_id: str, after: str = "", limit: int | None = None) -> list[Artifact]:
    """By path, from the first past `after`; `limit` + 1 rows, or all of them."""
    query = select(Artifact).where(Artifact.job_id == job_id, Artifact.path > after).order_by(Artifact.path)
    return list(session.scalars(query.limit(None if limit is None else limit + 1)))


def folder(session: Session, job_id: str, name: str) -> list[Artifact]:
    """Every artifact inside a folder of the job's, by path."""
    found = [file for file in artifacts(session, job_id) if file.path.startswith(f"{name}/")]
    if not found:
        raise NotFound("archive", f"{name}.tar")
    return found


def artifact(session: Session, job_id: str, path: str) -> Artifact:
    found = session.get(Artifact, (job_id, path))
    if found is None:
        raise NotFound("artifact", path)
    return found


def attempt(session: Session, job_id: str, number: int) -> Attempt:
    found = session.get(Attempt, (job_id, number))
    if found is None:
        raise NotFound("attempt", str(number))
    return found


def attempts(session: Session, job_id: str) -> list[Attempt]:
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)))


def queue_position(session: Session, job: Job) -> int | None:
    """1 for the next job of its device class, at most COUNTED_PLACES; None when it does not wait."""
    if job.status != Status.QUEUED:
        return None
    up_to = (Job.status == Status.QUEUED, Job.device_class == job.device_class, Job.id <= job.id)
    counted = select(Job.id).where(*up_to).limit(COUNTED_PLACES).subquery()
    return session.scalars(select(func.count()).select_from(counted)).one()


def describe(job: Job) -> schemas.Job:
    """The job as lists show it."""
    config = CompressionConfig.model_validate(job.config)
    return schemas.Job.model_validate(
        {
            **{name: getattr(job, name) for name in OWN_COLUMNS},
            "dataset": job.dataset_id,
            "budgets": config.budgets,
            "budget_scope": config.budget_scope,
            "seed": config.seed,
            "hyperparameters": Hyperparameters(**config.model_dump(include=set(Hyperparameters.model_fields))),
            "metadata": job.user_metadata,
        }
    )


def describe_fully(session: Session, job: Job) -> schemas.Job:
    """With what takes another look: the place in the queue, and when a running job will be done."""
    described = describe(job)
    described.queue_position = queue_position(session, job)
    attempt = session.get(Attempt, (job.id, job.attempt)) if job.status == Status.RUNNING else None
    if attempt is not None:
        budgets = len(described.budgets)
        described.estimated_finish_at = pace.estimated_finish(
            attempt.started_at, now(), job.stage, job.progress, budgets
        )
    return described


def request_cancel(session: Session, job: Job) -> None:
    """Stop the job: at once when it waits, through its worker when it runs. Asking again changes nothing."""
    if job.status in (Status.CANCELLED, Status.CANCELLING):
        return
    stopped = moves.make(session, job.id, states.CANCEL_QUEUED, finished_at=now())
    if not stopped and not moves.make(session, job.id, states.CANCEL_RUNNING):
        session.refresh(job)
        raise WrongState(f"Job '{job.id}' is {job.status.value} already and cannot be cancelled.")


def retry(session: Session, job: Job) -> None:
    """Queue a failed or cancelled job again, with all its attempts; asking again changes nothing."""
    if job.status in (Status.QUEUED, Status.RUNNING):
        return
    anew: dict[str, Any] = {
        **dict.fromkeys(("error", "sent_at", "started_at", "finished_at", "expires_at", "stage")),
        "progress": 0.0,
        "attempts_before_retry": Job.attempt,
    }
    if not any(moves.make(session, job.id, move, **anew) for move in (states.RETRY_FAILED, states.RETRY_CANCELLED)):
        session.refresh(job)
        raise WrongState(f"Job '{job.id}' is {job.status.value}; only a failed or cancelled job can be retried.")


def delete(session: Session, job: Job) -> None:
    """Hide a finished job and let its files go; its rows follow when they are gone."""
    finished = update(Job).where(Job.id == job.id, Job.status.in_(FINAL), Job.deleted_at.is_(None))
    if not moves.changed(session, finished.values(deleted_at=now())):
        session.refresh(job)
        raise WrongState(f"Job '{job.id}' is {job.status.value}; cancel it, then delete it.")
    leftovers.leave(session, moves.folder_of(job.id))
