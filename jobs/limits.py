"""What one API key may take up: its own limits, or those of the settings; 0 means without limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ScalarSelect, Select, func, select
from sqlalchemy.orm import Session

from jobs.errors import LimitReached
from jobs.keys import Caller
from jobs.schemas import Limits, Usage
from jobs.settings import Settings
from jobs.states import Status
from jobs.tables import ApiKey, Artifact, Dataset, Job, Model, Upload

RUNNING = (Status.RUNNING, Status.CANCELLING)
QUEUE_RETRY_SECONDS = 30
STORAGE_RETRY_SECONDS = 3600


def in_force(limits: Mapping[str, Any], settings: Settings) -> Limits:
    """The key's own limits, and the settings' where it has none."""
    given = Limits.model_validate(limits)
    return Limits(**{name: getattr(settings, name) if value is None else value for name, value in given})


def usage(session: Session, caller: Caller) -> Usage:
    """What the caller's key takes up now."""
    queued, running = _count(_jobs(caller.key_id, Status.QUEUED)), _count(_jobs(caller.key_id, *RUNNING))
    found = session.execute(select(queued, running, *_stored(caller))).one()
    return Usage(queued_jobs=found[0], running_jobs=found[1], storage_bytes=int(sum(found[2:])))


def check_new_job(session: Session, caller: Caller, settings: Settings) -> None:
    """One query, or none without limits; raises LimitReached.

    Requests at the same moment may each see the last free place.
    """
    own = in_force(caller.limits, settings)
    columns: list[ScalarSelect[int]] = []
    if own.max_queued_jobs:
        columns.append(_count(_jobs(caller.key_id, Status.QUEUED).limit(own.max_queued_jobs)))
    if own.max_storage_bytes:
        columns += _stored(caller)
    if not columns:
        return
    found = list(session.execute(select(*columns)).one())
    if own.max_queued_jobs:
        check_queued(found.pop(0), own)
    if own.max_storage_bytes:
        _check_stored(sum(found), 1, own.max_storage_bytes)


def check_queued(queued: int, limits: Limits) -> None:
    """Whether one job more may wait; raises LimitReached."""
    if limits.max_queued_jobs and queued >= limits.max_queued_jobs:
        message = f"{limits.max_queued_jobs} jobs of this API key wait already; wait for some to start, or cancel some."
        raise LimitReached("too_many_queued_jobs", message, QUEUE_RETRY_SECONDS)


def check_storage(session: Session, caller: Caller, settings: Settings, more_bytes: int) -> None:
    """Whether so many bytes more may be kept; raises LimitReached.

    An upload counts in full once it is announced, so its parts need no check of their own.
    """
    if limit := in_force(caller.limits, settings).max_storage_bytes:
        _check_stored(sum(session.execute(select(*_stored(caller))).one()), more_bytes, limit)


def may_start(session: Session, job_id: str, default: int) -> bool:
    """Whether the key of the job may run one more; nobody else's answer changes before this transaction ends."""
    owner = select(ApiKey.id, ApiKey.limits).join(Job, Job.key_id == ApiKey.id).where(Job.id == job_id)
    found = session.execute(owner).one_or_none()
    limit = default if found is None else _running_limit(found.limits, default)
    if found is None or not limit:
        return True
    session.execute(select(ApiKey.id).where(ApiKey.id == found.id).with_for_update())
    return session.execute(select(_count(_jobs(found.id, *RUNNING)))).scalar_one() < limit


def free_places(session: Session, default: int) -> dict[str, int]:
    """How many jobs more each key may start, for the keys that have jobs running and a limit."""
    running = select(Job.key_id, func.count().label("jobs")).where(Job.status.in_(RUNNING)).group_by(Job.key_id)
    counted = running.subquery()
    keys = select(ApiKey.id, ApiKey.limits, counted.c.jobs).join(counted, counted.c.key_id == ApiKey.id)
    limits = ((id, _running_limit(own, default), jobs) for id, own, jobs in session.execute(keys))
    return {id: max(limit - jobs, 0) for id, limit, jobs in limits if limit}


def _running_limit(own: Mapping[str, Any], default: int) -> int:
    limit = own.get("max_running_jobs")
    return default if limit is None else int(limit)


def _check_stored(stored: int, more: int, limit: int) -> None:
    if stored + more > limit:
        message = f"This API key keeps {stored:,} of at most {limit:,} bytes; delete datasets, models or finished jobs."
        raise LimitReached("storage_limit_reached", message, STORAGE_RETRY_SECONDS)


def _jobs(key_id: str, *statuses: Status) -> Select[str]:
    return select(Job.id).where(Job.key_id == key_id, Job.status.in_(statuses))


def _count(rows: Select[str]) -> ScalarSelect[int]:
    return select(func.count()).select_from(rows.subquery()).scalar_subquery()


def _stored(caller: Caller) -> list[ScalarSelect[int]]:
    """Bytes of datasets, models, uploads and artifacts; the tenant is named for the index."""
    mine = [
        select(func.coalesce(func.sum(table.bytes), 0)).where(
            table.tenant == caller.tenant, table.key_id == caller.key_id, table.deleted_at.is_(None)
        )
        for table in (Dataset, Model)
    ]
    uploads = select(func.coalesce(func.sum(Upload.bytes), 0))
    artifacts = select(func.coalesce(func.sum(Artifact.bytes), 0)).join(Job, Job.id == Artifact.job_id)
    mine.append(uploads.where(Upload.tenant == caller.tenant, Upload.key_id == caller.key_id))
    done = (Job.key_id == caller.key_id, Job.status == Status.SUCCEEDED, Job.deleted_at.is_(None))
    return [query.scalar_subquery() for query in (*mine, artifacts.where(*done))]
