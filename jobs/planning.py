"""What a job would take, and whether it can be done: asked before it is queued, answered in the time of a request."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from jactus_core.config import CompressionConfig
from jactus_core.errors import (
    GatedModel,
    InfeasibleBudget,
    JactusError,
    ModelNotFound,
    UnsafeWeights,
    UnsupportedModel,
)
from jactus_core.models import ModelReference, find_model
from jactus_core.tasks import TASK_NAMES, TaskName
from jobs import forecast, model_archive, schemas, store
from jobs.classes import CLASSES, DeviceClass, smallest_class
from jobs.errors import InvalidParameter, ServiceError
from jobs.helper import Helper
from jobs.memory import Memory
from jobs.models import CONFIG, Named
from jobs.planner import Request
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.tables import Dataset

REMEMBERED = 1000
REMEMBERED_SECONDS = 60
"""For what may change: the hub, folders, and a model that could not be looked at."""


class TooLarge(ServiceError):
    """No worker's device can hold it."""

    code = "too_large_for_this_host"
    status = 422


class NotEnoughDisk(ServiceError):
    """The work folder is too full."""

    code = "not_enough_disk"
    status = 422


class MissingPackages(ServiceError):
    """The workers cannot produce what was asked for."""

    code = "output_unavailable"
    status = 422


@dataclass(frozen=True)
class Located:
    """A model that exists, and the text of its configuration."""

    reference: ModelReference
    config_json: str
    digest: str
    parameters: int | None
    is_here: bool = False  # a folder of this host, which no worker has to fetch

    @property
    def fetched_bytes(self) -> int:
        """What a worker brings to its disk."""
        return 0 if self.is_here else self.reference.bytes or 0


@dataclass(frozen=True)
class Plan:
    """A job before it exists; with a problem it cannot be done."""

    revision: str | None
    estimate: schemas.ModelEstimate
    device_class: DeviceClass | None
    needed_disk_bytes: int
    problems: tuple[JactusError, ...]

    def require_possible(self) -> DeviceClass:
        """The kind of worker for it; raises the first problem."""
        for problem in self.problems:
            raise problem
        assert self.device_class is not None
        return self.device_class


class Planner:
    """Looks at models through a helper process, and remembers what it saw."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self._settings = settings
        self._storage = storage
        self._helper = Helper(settings.planning_seconds, settings.planner_address)
        self._located = Memory(REMEMBERED)
        self._answers = Memory(REMEMBERED)
        self.datasets = Memory(REMEMBERED)
        """What jobs were planned for; only their deletion changes datasets, and a job's own transaction looks again."""

    def close(self) -> None:
        self._helper.close()

    def locate(self, named: Named) -> Located:
        """Raises ModelNotFound, UnsupportedModel, or InvalidParameter for a revision where there is none."""
        key = self._key(named)
        located: Located | None = self._located.recall(key)
        if located is None:
            located = self._look(named)
            self._located.keep(key, located, REMEMBERED_SECONDS)
        if named.revision is not None and located.reference.revision is None:
            raise InvalidParameter(f"'{named.name}' is not on the hub and has no revisions; leave it out.", "revision")
        return located

    def plan(self, named: Named, request: schemas.JobCreate, dataset: Dataset) -> Plan:
        """Raises what `locate` does, and UnsupportedModel or PlanningTimeout."""
        located, config = self.locate(named), store.config_of(request, dataset)
        found = self._estimate(located, config, len(dataset.classes))
        device = smallest_class(self._settings.device_memory, max(found.peak_memory_bytes.values()))
        disk = forecast.disk_bytes(found, request, dataset, located.fetched_bytes)
        problems = self._problems(found, request, device)
        if "onnx" in request.outputs and (missing := self._abilities(located)["missing"]):
            problems.append(_without_onnx(missing))
        return Plan(located.reference.revision, found, device, disk, tuple(problems))

    def describe(self, plan: Plan, request: schemas.JobCreate, dataset: Dataset) -> schemas.JobEstimate:
        """The plan as its reader sees it."""
        device = plan.device_class or CLASSES[-1]
        return schemas.JobEstimate(
            **plan.estimate.model_dump(),
            task=cast(TaskName, dataset.task),
            model=request.model,
            revision=plan.revision,
            feasible=not plan.problems,
            problems=[schemas.Problem.model_validate(problem.as_dict()) for problem in plan.problems],
            device_class=plan.device_class,
            needed_disk_bytes=plan.needed_disk_bytes,
            seconds=forecast.seconds(plan.estimate, store.config_of(request, dataset), dataset, device),
        )

    def preflight(self, named: Named, task: TaskName | None) -> schemas.Preflight:
        """What is known of the model; its problems are those that creating a job would meet."""
        free = _free_bytes(self._settings.work_dir)
        seen: dict[str, Any] = dict.fromkeys(
            ("revision", "model_type", "architecture_supported", "bytes", "parameters")
        )
        seen |= {"exists": True, "gated": False, "safetensors": None, "tasks": []}
        problems: list[JactusError] = []
        try:
            located = self.locate(named)
            tasks = self._tasks(located)
            reference = located.reference
            seen |= {"revision": reference.revision, "model_type": reference.model_type, "gated": reference.gated}
            seen |= {"bytes": reference.bytes, "parameters": located.parameters, "safetensors": True, "tasks": tasks}
            seen["architecture_supported"] = task in tasks if task else bool(tasks)
            if not seen["architecture_supported"]:
                problems.append(_unsupported(reference, task))
            if located.fetched_bytes > free:
                problems.append(_disk_full(located.fetched_bytes, free))
        except JactusError as error:
            problems.append(error)
            seen["exists"] = isinstance(error, GatedModel) or not isinstance(error, ModelNotFound)
            seen["gated"] = isinstance(error, GatedModel)
            seen["safetensors"] = False if isinstance(error, UnsafeWeights) else seen["safetensors"]
        said = [schemas.Problem.model_validate(problem.as_dict()) for problem in problems]
        return schemas.Preflight(**seen, free_disk_bytes=free, problems=said)

    def _key(self, named: Named) -> Hashable:
        """Under which to remember where it is."""
        if named.uploaded is not None:
            return named.uploaded.id
        try:
            state = (self._settings.model_root / named.name / CONFIG).stat()
        except (OSError, ValueError):
            return named.name, named.revision, named.sealed
        return named.name, state.st_mtime_ns, state.st_size

    def _look(self, named: Named) -> Located:
        if (model := named.uploaded) is not None:
            with tempfile.TemporaryDirectory(prefix="jactus-config-") as folder:
                file = Path(folder) / CONFIG
                self._storage.fetch_file(f"{model.storage_prefix}/{CONFIG}", file)
                reference = ModelReference(model.id, model.id, None, model.model_type, file, model.bytes)
                return _located(reference, model.parameters)
        reference = find_model(named.name, named.revision, self._settings.model_root, named.token)
        if reference.revision is not None:
            return _located(reference, reference.parameters)
        return _located(reference, model_archive.count_parameters(Path(reference.location), "model"), is_here=True)

    def _estimate(self, located: Located, config: CompressionConfig, classes: int) -> schemas.ModelEstimate:
        reference = located.reference
        key = (reference.name, located.digest, config.model_dump_json(exclude={"seed"}), classes)
        request = Request(
            model=reference.name,
            model_type=reference.model_type,
            config_json=located.config_json,
            config=config,
            classes=classes,
        )
        found: schemas.ModelEstimate = self._asked(key, request, schemas.ModelEstimate.model_validate)
        return found

    def _tasks(self, located: Located) -> list[TaskName]:
        """What the architecture can be compressed for."""
        able = self._abilities(located)["tasks"]
        return [name for name in TASK_NAMES if name in able]

    def _abilities(self, located: Located) -> dict[str, list[str]]:
        """The `tasks` of the architecture, and the packages that are `missing` for ONNX."""
        reference = located.reference
        request = Request(model=reference.name, model_type=reference.model_type)
        found: dict[str, list[str]] = self._asked(reference.model_type, request, dict)
        return found

    def _asked(self, key: Hashable, request: Request, shape: Callable[[dict[str, Any]], Any]) -> Any:
        """The helper's answer, or the error it ended in; either is remembered."""
        found = self._answers.recall(key)
        if found is None:
            with self._helper.turn():
                found = self._answers.recall(key)  # it may have been another's question
                if found is None:
                    try:
                        found = shape(self._helper.ask(request))
                        self._answers.keep(key, found)
                    except JactusError as error:
                        found = error
                        self._answers.keep(key, found, REMEMBERED_SECONDS)
        if isinstance(found, JactusError):
            raise found.with_traceback(None)
        return found

    def _problems(
        self, found: schemas.ModelEstimate, request: schemas.JobCreate, device: DeviceClass | None
    ) -> list[JactusError]:
        problems: list[JactusError] = []
        if infeasible := [point.budget for point in found.budgets if not point.feasible]:
            problems.append(
                InfeasibleBudget(
                    f"A budget of {infeasible[0]:g} is too small for this model; the smallest feasible one is "
                    f"{math.ceil(found.smallest_budget * 1e4) / 1e4:g}, or less with a lower rank_multiple.",
                    "budgets",
                )
            )
        if device is None:
            problems.append(
                TooLarge(
                    f"The job needs {max(found.peak_memory_bytes.values()):,} bytes of memory, more than any worker "
                    "here has; lower batch_size, max_length or max_covariance_bytes, or choose a smaller model.",
                    "model",
                )
            )
        return problems


def _located(reference: ModelReference, parameters: int | None, is_here: bool = False) -> Located:
    assert reference.config_file is not None
    text = reference.config_file.read_text(encoding="utf-8")
    return Located(reference, text, sha256(text.encode()).hexdigest(), parameters, is_here)


def _unsupported(reference: ModelReference, task: TaskName | None) -> UnsupportedModel:
    return UnsupportedModel(
        f"transformers has no {task or 'such'} model of the type '{reference.model_type}'; choose another model"
        + (" or another task." if task else "."),
        "model",
    )


def _without_onnx(missing: list[str]) -> MissingPackages:
    return MissingPackages(
        f"ONNX needs {' and '.join(missing)}; install jactus-core[onnx] with the workers.", "outputs"
    )


def _disk_full(needed: int, free: int) -> NotEnoughDisk:
    return NotEnoughDisk(
        f"The work folder of this host has {free:,} bytes left and {needed:,} are needed; ask for fewer budgets or "
        "outputs, or make room.",
        "model",
    )


def _free_bytes(folder: Path) -> int:
    """Where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
