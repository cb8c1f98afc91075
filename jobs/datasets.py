"""Datasets: checked on arrival, kept in storage, described in the database."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from jactus_core.errors import InvalidDataset
from jactus_core.examples import read_examples
from jactus_core.files import sha256_of
from jactus_core.sources import FORMATS, format_of, open_file
from jobs.clock import new_id, now
from jobs.errors import NotFound
from jobs.tables import Dataset

SUFFIXES = tuple(suffix for suffix, format in FORMATS.items() if format in ("csv", "jsonl"))
PARAMS = {"columns.text": "text_column", "columns.label": "label_column"}


def check_file(tenant: str, filename: str, file: Path, text_column: str, label_column: str) -> Dataset:
    """Read the whole file and describe it; raises InvalidDataset and keeps nothing when it is of no use."""
    if Path(filename).suffix.lower() not in SUFFIXES:
        raise InvalidDataset(f"'{filename}' is not a dataset file: the name must end in {', '.join(SUFFIXES)}.", "file")
    format = format_of(filename)
    columns = {"text": text_column, "label": label_column}
    try:
        examples, _ = read_examples(open_file(file, format), "text-classification", columns)
    except InvalidDataset as error:
        error.param = PARAMS.get(error.param or "", error.param)
        raise
    id = new_id("dataset")
    return Dataset(
        id=id,
        tenant=tenant,
        filename=filename,
        format=format,
        bytes=file.stat().st_size,
        sha256=sha256_of(file),
        storage_key=f"datasets/{id}/data.{format}",
        text_column=text_column,
        label_column=label_column,
        rows=len(examples),
        classes=examples.counts(),
        created_at=now(),
    )


def find_dataset(session: Session, tenant: str, id: str, param: str | None = None) -> Dataset:
    found = session.get(Dataset, id)
    if found is None or found.tenant != tenant:
        raise NotFound("dataset", id, param)
    return found


def list_datasets(session: Session, tenant: str, after: str | None, limit: int) -> list[Dataset]:
    """Newest first; `limit` + 1 rows, so that the caller sees whether there are more."""
    query = select(Dataset).where(Dataset.tenant == tenant).order_by(Dataset.id.desc()).limit(limit + 1)
    return list(session.scalars(query if after is None else query.where(Dataset.id < after)))
