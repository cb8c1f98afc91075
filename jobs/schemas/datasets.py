"""What the API says about datasets."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from jactus_core.tasks import TaskName
from jobs.schemas.common import Described, Given, Name


class _Checked(Given):
    """What a dataset is checked for."""

    task: TaskName = Field(default="text-classification", description="What the rows are for.")
    columns: dict[Name, Name] = Field(
        default={},
        max_length=10,
        description="Columns by role where they are named otherwise.",
        json_schema_extra={"additionalProperties": False},
    )


class DatasetFromHub(_Checked):
    name: Name = Field(description="Id of a dataset on the hub.")
    revision: Name | None = Field(default=None, description="Branch, tag or commit; the newest by default.")
    secret: Name | None = Field(default=None, description="Name of a stored hub token, for a private dataset.")


class DatasetFromUpload(_Checked):
    upload: Name = Field(description="Id of an upload whose parts have all arrived; the dataset takes its place.")


class Dataset(Described):
    """A dataset and the profile that was taken when it arrived."""

    object: Literal["dataset"] = "dataset"
    id: str
    name: str = Field(description="The file's name, or the id on the hub.")
    task: TaskName
    format: str = Field(description="csv, jsonl, parquet, zip, or hub.")
    revision: str | None = Field(description="Commit on the hub; null for a file.")
    secret: str | None = Field(description="Name of the stored hub token that it was read with.")
    bytes: int
    sha256: str | None = Field(description="Of the file; null on the hub.")
    columns: dict[str, str] = Field(description="Column by role, such as text and label.")
    all_columns: list[str] = Field(description="Every column of the first row; none for image folders.")
    rows: int = Field(description="Rows to train on; part of them is held out where eval_rows is 0.")
    eval_rows: int = Field(description="Rows that the dataset itself sets apart for evaluation.")
    classes: dict[str, int] = Field(description="Training rows per class; empty where the task has none.")
    created_at: datetime
