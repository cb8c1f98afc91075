"""Datasets: checked on arrival, kept in storage, described in the database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from jactus_core.errors import JactusError
from jactus_core.examples import read_examples
from jactus_core.files import sha256_of
from jactus_core.sources import Source, find_hub_version, format_of, open_file, open_hub
from jactus_core.tasks import TASKS, TaskName
from jobs import leftovers, schemas
from jobs.clock import new_id, now
from jobs.database import newest_first
from jobs.errors import InUse, InvalidParameter, NotFound
from jobs.keys import Caller
from jobs.states import LIVE
from jobs.tables import Dataset, Job

HUB = "hub"
"""The format of a dataset that is not kept here."""


def check_file(
    caller: Caller, filename: str, file: Path, task: TaskName, columns: Mapping[str, str], sha256: str | None = None
) -> Dataset:
    """Read the whole file and describe it; raises InvalidDataset and keeps nothing when it is of no use."""
    format = format_of(filename)
    dataset = _check(caller, open_file(file, format), task, columns, name=filename, format=format)
    dataset.bytes = file.stat().st_size
    dataset.sha256 = sha256 or sha256_of(file)
    dataset.storage_key = f"{folder_of(dataset.id)}/data.{format}"
    if format == "zip":
        dataset.all_columns = []
    return dataset


def check_hub(
    caller: Caller, request: schemas.DatasetFromHub, token: str | None = None, max_bytes: int | None = None
) -> Dataset:
    """Load a dataset of the hub as it is now and describe it; raises DatasetNotFound, or InvalidDataset."""
    try:
        version = find_hub_version(request.name, request.revision, token)
        if max_bytes is not None and version.bytes > max_bytes:
            raise InvalidParameter(
                f"The dataset has {version.bytes:,} bytes on the hub; this service takes up to {max_bytes:,}.", "name"
            )
        source = open_hub(request.name, version.commit, token)
    except JactusError as error:
        error.param = "name"
        raise
    dataset = _check(caller, source, request.task, request.columns, name=request.name, format=HUB)
    dataset.revision, dataset.secret, dataset.bytes = version.commit, request.secret, version.bytes
    return dataset


def _check(
    caller: Caller, source: Source, task: TaskName, columns: Mapping[str, str], name: str, format: str
) -> Dataset:
    examples, evaluation = read_examples(source, task, columns)
    return Dataset(
        id=new_id("dataset"),
        tenant=caller.tenant,
        key_id=caller.key_id,
        name=name,
        task=task,
        format=format,
        columns={**{role: role for role in TASKS[task].roles}, **columns},  # an optional one only where it was named
        all_columns=list(next(iter(source.train)).cells),
        rows=len(examples),
        eval_rows=len(evaluation or ()),
        classes=examples.counts(),
        created_at=now(),
    )


def folder_of(id: str) -> str:
    """Where a dataset's file lies in storage."""
    return f"datasets/{id}"


def find_dataset(session: Session, tenant: str, id: str, param: str | None = None, *, keep: bool = False) -> Dataset:
    """With `keep` nobody deletes it before this transaction ends."""
    found = session.get(Dataset, id, with_for_update={"read": True} if keep else None)
    if found is None or found.tenant != tenant or found.deleted_at is not None:
        raise NotFound("dataset", id, param)
    return found


def list_datasets(session: Session, tenant: str, after: str | None = None, limit: int = 20) -> list[Dataset]:
    """Newest first; `limit` + 1 rows, so that the caller sees whether there are more."""
    query = select(Dataset).where(Dataset.tenant == tenant, Dataset.deleted_at.is_(None))
    return newest_first(session, query, Dataset.id, after, limit)


def delete_dataset(session: Session, dataset: Dataset) -> None:
    """Hide the dataset and let its file go; raises InUse while a live job needs it."""
    session.refresh(dataset, with_for_update=True)
    if dataset.deleted_at is not None:
        raise NotFound("dataset", dataset.id)
    needed = select(Job.id).where(Job.dataset_id == dataset.id, Job.status.in_(LIVE)).limit(1)
    if job := session.scalars(needed).one_or_none():
        raise InUse(f"Job '{job}' still needs this dataset; cancel the job or wait for its end.")
    dataset.deleted_at = now()
    leftovers.leave(session, folder_of(dataset.id))
