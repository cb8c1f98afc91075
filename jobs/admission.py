"""What a new job asks before it is written, as one question to the database: it is what most requests come for."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ScalarSelect, bindparam, func, select
from sqlalchemy.orm import Session

from jobs import limits
from jobs.classes import DeviceClass
from jobs.errors import NotFound
from jobs.keys import Caller
from jobs.settings import Settings
from jobs.states import Status
from jobs.store import COUNTED_PLACES
from jobs.tables import Dataset, Job, Webhook


@dataclass(frozen=True)
class Admission:
    """A job may be created."""

    queue_position: int
    is_watched: bool  # a webhook may want to know


def _count(column: str, most: str) -> ScalarSelect[int]:
    waiting = select(Job.id).where(Job.status == Status.QUEUED, getattr(Job, column) == bindparam(column))
    return select(func.count()).select_from(waiting.limit(bindparam(most)).subquery()).scalar_subquery()


QUESTION = (  # built once
    select(
        _count("key_id", "most_queued"),
        _count("device_class", "most_places"),
        select(Webhook.id).where(Webhook.tenant == bindparam("tenant"), Webhook.disabled_at.is_(None)).exists(),
    )
    .where(Dataset.id == bindparam("dataset"), Dataset.tenant == bindparam("tenant"), Dataset.deleted_at.is_(None))
    .with_for_update(read=True, key_share=True, of=Dataset)
)


def admit(session: Session, caller: Caller, settings: Settings, dataset: str, device: DeviceClass) -> Admission:
    """Keeps the dataset from being deleted before this transaction ends; raises NotFound, LimitReached."""
    own = limits.in_force(caller.limits, settings)
    given = {"tenant": caller.tenant, "dataset": dataset, "key_id": caller.key_id, "device_class": device}
    most = {"most_queued": own.max_queued_jobs, "most_places": COUNTED_PLACES - 1}
    row = session.execute(QUESTION, {**given, **most}).one_or_none()
    if row is None:
        raise NotFound("dataset", dataset, "dataset")
    queued, ahead, is_watched = row
    limits.check_queued(queued, own)
    limits.check_storage(session, caller, settings, 1)
    return Admission(ahead + 1, is_watched)
