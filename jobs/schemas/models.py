"""What the API takes and says about models."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from jactus_core.tasks import TaskName
from jobs.schemas.common import Described, Given, Name

PUBLIC_MODEL = "Hub id, id of an uploaded model, or a folder under the host's model root."


class ModelFile(BaseModel):
    bytes: int
    sha256: str


class Model(Described):
    """An uploaded model; jobs name it by its id."""

    object: Literal["model"] = "model"
    id: str
    name: str
    model_type: str
    parameters: int | None = Field(description="Counted in the headers of the weights.")
    bytes: int
    sha256: str = Field(description="Of the list of files with their hashes.")
    files: dict[str, ModelFile]
    created_at: datetime


class LocalModel(BaseModel):
    """A folder under the host's model root; jobs name it by its name."""

    object: Literal["local_model"] = "local_model"
    name: str
    model_type: str
    bytes: int


class PreflightRequest(Given):
    model: Name = Field(description=PUBLIC_MODEL)
    revision: Name | None = Field(default=None, description="Branch, tag or commit on the hub.")
    secret: Name | None = Field(default=None, description="Name of a stored secret: a hub token for gated models.")
    task: TaskName | None = Field(default=None, description="What it is to be compressed for; null: any task.")


class Problem(BaseModel):
    """Why it cannot be done: the error that creating the job would answer with."""

    code: str
    message: str
    param: str | None = None


class Preflight(BaseModel):
    """What is known of a model before it is downloaded; null where it is not known."""

    object: Literal["preflight"] = "preflight"
    exists: bool
    gated: bool
    revision: str | None = Field(description="Commit on the hub.")
    model_type: str | None
    tasks: list[TaskName] = Field(description="What this architecture can be compressed for.")
    architecture_supported: bool | None = Field(description="Whether `task` is among them, or any if it is null.")
    safetensors: bool | None
    bytes: int | None = Field(description="Of the files that a worker reads.")
    parameters: int | None
    free_disk_bytes: int = Field(description="Where this host keeps the files of running jobs.")
    problems: list[Problem] = Field(description="Empty when a job can be created.")


class ModelFromUpload(Given):
    """A zip that has arrived in parts."""

    upload: Name = Field(description="Id of a complete upload.")
