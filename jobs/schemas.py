"""The HTTP contract: what the API takes and gives, shared with the client. Needs pydantic only."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from jactus_core.config import Budgets, Hyperparameters, Seed
from jactus_core.progress import Stage
from jobs.states import Status

Item = TypeVar("Item")
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class _Described(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class ErrorBody(BaseModel):
    """Why a request or a job failed: `code` for programs, `message` for people, `param` names the culprit."""

    type: str
    code: str
    message: str
    param: str | None = None
    request_id: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorBody


class JobCreate(BaseModel):
    """A compression to run."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": "sentence-transformers/all-MiniLM-L6-v2",
                    "dataset": "dataset_0198f2c3a4b5d6e7f8091a2b",
                    "budgets": [0.8, 0.5],
                }
            ]
        },
    )

    model: Name = Field(description="Hub id, or a folder under the host's model root.")
    revision: Name | None = Field(default=None, description="Branch, tag or commit on the hub.")
    dataset: Name = Field(description="Id of an uploaded dataset.")
    task: Literal["text-classification"] = "text-classification"
    budgets: Budgets
    seed: Seed = 0
    hyperparameters: Hyperparameters = Hyperparameters()
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="Your own notes, given back as they are."
    )


class JobError(BaseModel):
    code: str
    message: str
    param: str | None = None


class ModelSize(BaseModel):
    """Parameters and bytes of the whole model, and of its compressible layers' weights."""

    parameters: int
    bytes: int
    compressible_parameters: int
    compressible_bytes: int


class BudgetPoint(BaseModel):
    """One checkpoint of the frontier; `ranks` by layer, null where the layer stays dense."""

    budget: float
    folder: str
    kept_fraction: float
    metrics: dict[str, float]
    size: ModelSize
    ranks: dict[str, int | None]


class JobResult(BaseModel):
    """What the job produced, beside the dense model with the same task head."""

    task: str
    metric: str = Field(description="The metric that stands for the task.")
    dense_metrics: dict[str, float]
    dense_size: ModelSize
    budgets: list[BudgetPoint]
    seconds: dict[str, float] = Field(description="Wall time by stage.")


class Job(_Described):
    object: Literal["job"] = "job"
    id: str
    status: Status
    stage: Stage | None
    progress: float = Field(description="Finished fraction of the stage.")
    task: str
    model: str
    revision: str | None
    dataset: str
    budgets: tuple[float, ...]
    seed: int
    hyperparameters: Hyperparameters
    metadata: dict[str, str]
    attempt: int
    error: JobError | None
    result: JobResult | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Dataset(_Described):
    object: Literal["dataset"] = "dataset"
    id: str
    filename: str
    format: str
    bytes: int
    sha256: str
    text_column: str
    label_column: str
    rows: int
    classes: dict[str, int]
    created_at: datetime


class Event(_Described):
    """`status` events carry the new status, `progress` events the stage, its fraction and a note."""

    object: Literal["event"] = "event"
    number: int
    type: str
    data: dict[str, Any]
    created_at: datetime


class Artifact(_Described):
    object: Literal["artifact"] = "artifact"
    path: str
    bytes: int
    sha256: str


class Page(BaseModel, Generic[Item]):
    """Part of a list; pass the last item's id (for events: number) as `after` to get the next part."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
