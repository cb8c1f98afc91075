"""What the API takes and says about jobs."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter
from typing_extensions import TypeAliasType

from jactus_core.config import Budgets, Hyperparameters, Seed
from jactus_core.progress import Stage
from jactus_core.tasks import TaskName
from jobs.classes import DeviceClass
from jobs.schemas.common import Described, Given, Name
from jobs.schemas.models import PUBLIC_MODEL, Problem
from jobs.states import Status

METADATA_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MetadataKey = Annotated[str, StringConstraints(pattern=rf"^{METADATA_KEY.pattern}$")]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]
Output = Literal["checkpoint", "dense", "onnx"]
LONGEST_RUN = 30 * 24 * 3600


class JobCreate(Given):
    """A compression to run."""

    model_config = ConfigDict(
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

    model: Name = Field(description=PUBLIC_MODEL)
    revision: Name | None = Field(default=None, description="Branch, tag or commit on the hub.")
    secret: Name | None = Field(default=None, description="Name of a stored secret: a hub token for gated models.")
    dataset: Name = Field(description="Id of a dataset.")
    task: TaskName | None = Field(default=None, description="Null: the task that the dataset was checked for.")
    budgets: Budgets
    budget_scope: Literal["compressible", "model"] = Field(
        default="compressible", description="What a budget is a fraction of: the linear layers, or the whole model."
    )
    quality_bound: float | None = Field(
        default=None,
        ge=0,
        lt=float("inf"),
        description="How much of the dense model's metric may be lost; the result names the smallest budget within it.",
    )
    outputs: tuple[Output, ...] = Field(
        default=("checkpoint",),
        min_length=1,
        max_length=3,
        strict=False,
        description="Forms in which each budget is published.",
    )
    seed: Seed = 0
    hyperparameters: Hyperparameters = Hyperparameters()
    max_runtime: int | None = Field(
        default=None, ge=1, le=LONGEST_RUN, description="Seconds a run may take; null: any."
    )
    retention_days: int | None = Field(
        default=None, ge=1, le=3650, description="Days until the finished job and its files are deleted; null: never."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict,
        max_length=16,
        description="Your own notes, given back as they are; lists filter by them.",
        json_schema_extra={"additionalProperties": False},
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
    exports: dict[str, str] = Field(default_factory=dict, description="Folder by further form: dense, onnx.")
    kept_fraction: float
    metrics: dict[str, float]
    size: ModelSize
    ranks: dict[str, int | None]


class JobResult(BaseModel):
    """What the job produced, beside the dense model with the same task head."""

    task: TaskName
    metric: str = Field(description="The metric that stands for the task.")
    dense_metrics: dict[str, float]
    dense_size: ModelSize
    budgets: list[BudgetPoint]
    chosen_budget: float | None = Field(default=None, description="The smallest budget within quality_bound.")
    seconds: dict[str, float] = Field(description="Wall time by stage.")


class BudgetEstimate(BaseModel):
    """One checkpoint before it exists; parameters and bytes are upper bounds."""

    budget: float
    feasible: bool
    parameters: int
    bytes: int
    compressible_parameters: int
    ranks: dict[str, int | None] = Field(
        description="Rank by layer shape such as 384x384 if every layer gets the same fraction; null stays dense."
    )


class ModelEstimate(BaseModel):
    """What a compression takes and gives, from the model's configuration alone."""

    parameters: int
    bytes: int
    compressible_parameters: int
    layers: int
    smallest_budget: float = Field(description="The smallest feasible one.")
    budgets: list[BudgetEstimate]
    covariance_bytes: int
    calibration_passes: int
    peak_memory_bytes: dict[str, int] = Field(description="By stage, without what an allocator adds.")
    disk_bytes: int = Field(description="Work files and checkpoints at their largest.")
    row_tokens: int = Field(description="Of the longest row there can be.")
    decomposition_flops: int


class SecondsRange(BaseModel):
    low: float
    high: float


class JobEstimate(ModelEstimate):
    """What a job would take and give; nothing was created."""

    object: Literal["job_estimate"] = "job_estimate"
    task: TaskName
    model: str
    revision: str | None
    feasible: bool = Field(description="Whether the job would be accepted as it is.")
    problems: list[Problem] = Field(description="Why not.")
    device_class: DeviceClass | None = Field(description="The kind of worker; null where none is large enough.")
    needed_disk_bytes: int = Field(description="With the dataset, the model's files and every form of the outputs.")
    seconds: SecondsRange = Field(description="A rough guess at the wall time, without the wait for a worker.")


class Job(Described):
    object: Literal["job"] = "job"
    id: str
    status: Status
    stage: Stage | None
    progress: float = Field(description="Finished fraction of the stage.")
    queue_position: int | None = Field(
        default=None,
        description="1: next to run; counted up to 1000. Null once it runs, and in lists, where it is not counted.",
    )
    estimated_finish_at: datetime | None = Field(default=None, description="By the pace so far; null before a run.")
    task: TaskName
    model: str
    revision: str | None = Field(description="Commit of the model on the hub.")
    secret: str | None
    dataset: str
    dataset_revision: str | None = Field(description="Commit of the dataset on the hub, or the file's SHA-256.")
    budgets: tuple[float, ...]
    budget_scope: str
    quality_bound: float | None
    outputs: tuple[Output, ...]
    seed: int
    hyperparameters: Hyperparameters
    max_runtime: int | None
    retention_days: int | None
    metadata: dict[str, str]
    device_class: DeviceClass = Field(description="The kind of worker that runs it, by the memory it needs.")
    attempt: int
    error: JobError | None
    result: JobResult | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None


class Attempt(Described):
    """One run of a job by one worker."""

    object: Literal["attempt"] = "attempt"
    number: int
    worker: str
    outcome: Literal["running", "succeeded", "failed", "cancelled", "lost", "released"]
    error: JobError | None
    seconds: dict[str, float] = Field(description="Wall time by stage.")
    started_at: datetime
    finished_at: datetime | None


class StatusData(BaseModel):
    """The new status; a failed job says why."""

    status: Status
    error: JobError | None = None


class ProgressData(BaseModel):
    """How much of a stage is done, and what it is at."""

    stage: Stage
    fraction: float
    note: str


class AnyEvent(Described):
    """What every event has."""

    object: Literal["event"] = "event"
    number: int = Field(description="From 1 without gaps, also when the job is retried.")
    created_at: datetime


class StatusEvent(AnyEvent):
    type: Literal["status"]
    data: StatusData


class ProgressEvent(AnyEvent):
    type: Literal["progress"]
    data: ProgressData


Event = TypeAliasType("Event", Annotated[StatusEvent | ProgressEvent, Field(discriminator="type")])
EVENT: TypeAdapter[Event] = TypeAdapter(Event, config=ConfigDict(from_attributes=True))


class Artifact(Described):
    object: Literal["artifact"] = "artifact"
    path: str
    bytes: int
    sha256: str
