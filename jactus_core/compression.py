"""The one verb: `compress` runs the six steps of the method in the order of the paper."""

from __future__ import annotations

import copy
import logging
import math
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from jactus_core import __version__
from jactus_core.allocation import Allocation, LayerSpectrum, allocate, check_budget, low_rank_parameters
from jactus_core.checkpoint import deploy, save_checkpoint, save_probe, verify_checkpoints
from jactus_core.config import CompressionConfig
from jactus_core.decomposition import Decomposition, decompose, spectra
from jactus_core.distributed import Processes
from jactus_core.encoding import Encoded, encode
from jactus_core.evaluation import Metrics, Size, evaluate, size_of
from jactus_core.examples import Examples, read_examples, split
from jactus_core.files import WORK_FOLDER, sha256_of, write_json
from jactus_core.finetuning import finetune_cores, repair, tune_adapters, warm_up_head
from jactus_core.layers import (
    Targets,
    adapter_names,
    find_targets,
    install_adapters,
    install_cores,
    merge_adapters,
)
from jactus_core.loading import device_of, load_model
from jactus_core.models import ModelReference, find_model
from jactus_core.plots import plot_frontier, plot_ranks
from jactus_core.progress import Report, StageClock, part, silent
from jactus_core.reporting import write_report
from jactus_core.sources import open_source
from jactus_core.tasks import TASKS, TaskName
from jactus_core.work import WorkFolder, fingerprint

logger = logging.getLogger(__name__)

FEW_SAMPLES = 64
"""Fewer calibration rows than this still work, with covariances that lean on their shrinkage; a warning says so."""
PROBE_ROWS = 4
ADAPTATION = {"adapter_share", "adapter_start", "epochs", "learning_rate", "gradient_checkpointing"}
"""Settings that the calibration of a model depends on if it is tuned before."""
AFTER_DECOMPOSITION = ADAPTATION | {
    "budgets",
    "budget_scope",
    "allocation",
    "rank_multiple",
    "core_basis",
    "trained",
    "max_shard_size",
    "max_covariance_bytes",
}
"""Settings that calibration and decomposition do not depend on otherwise: changing them keeps their results."""


def adaptation(config: CompressionConfig) -> dict[str, Any]:
    """What the calibration depends on besides, of a model that is tuned before; nothing of others."""
    if not config.adapter_epochs:
        return {}
    return {**config.model_dump(mode="json", include=ADAPTATION), "adapter_epochs": config.adapter_epochs}


@dataclass(frozen=True)
class BudgetResult:
    """One point of the frontier."""

    budget: float
    folder: Path
    kept_fraction: float  # of the compressible parameters
    size: Size
    metrics: Metrics
    ranks: dict[str, int | None]  # None: the layer stays dense


@dataclass(frozen=True)
class CompressionResult:
    """What one calibration gave at every budget, against the dense model with the same warmed-up head."""

    task: TaskName
    metric: str  # the key of the metrics that stands for the task
    dense_size: Size
    dense_metrics: Metrics
    budgets: list[BudgetResult]
    seconds: dict[str, float]  # by stage, in this process

    def __str__(self) -> str:
        """The frontier as a table."""
        lines = [f"{'':<12}{'linear layers':>15}{'whole model':>13}{self.metric:>14}"]
        dense = self.dense_size
        rows = [("dense", dense, self.dense_metrics)]
        rows += [(f"budget {point.budget:g}", point.size, point.metrics) for point in self.budgets]
        for name, size, metrics in rows:
            kept = size.compressible_parameters / dense.compressible_parameters
            lines.append(
                f"{name:<12}{kept:>15.1%}{size.parameters / dense.parameters:>13.1%}{metrics[self.metric]:>14.4f}"
            )
        return "\n".join(lines)

    def within(self, bound: float) -> BudgetResult | None:
        """The smallest budget that loses at most `bound` of the dense model's metric, in the metric's own unit."""
        sign = 1 if TASKS[self.task].higher_is_better else -1
        dense = self.dense_metrics[self.metric]
        good = [point for point in self.budgets if sign * (dense - point.metrics[self.metric]) <= bound]
        return min(good, key=lambda point: point.budget, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; folders by name, so that the result can travel."""
        points = [{**asdict(point), "folder": point.folder.name} for point in self.budgets]
        return {**asdict(self), "budgets": points}


def compress(
    model: str | ModelReference,
    data: Any,
    output: str | Path,
    config: CompressionConfig | None = None,
    *,
    eval_data: Any = None,
    columns: Mapping[str, str] | None = None,
    data_revision: str | None = None,
    report: Report = silent,
    **changes: Any,
) -> CompressionResult:
    """Compress a transformer and tune it for the task in `data`; one checkpoint folder per budget in `output`.

    `model` is a hub id or a folder. `data` is a CSV, JSON-lines or Parquet file, a folder or zip of images by class, a
    `datasets` object, a list of dictionaries, or a hub id with `data_revision`; `columns` maps what the task needs
    ("text", "label", …) to column names. Rows to evaluate on come from `eval_data`, from an evaluation split in
    `data`, or are held out. `changes` override single settings of `config`: `budgets=(0.8, 0.5)`.

    A call that was killed continues where it stopped when it is made again, with the same result. Raises a JactusError
    with a code and a remedy.
    """
    settings = (config or CompressionConfig()).model_dump() | changes
    config = CompressionConfig.model_validate(settings)
    return _Run(config, Path(output), report).go(model, data, eval_data, columns, data_revision)


@dataclass(frozen=True)
class _Data:
    """Encoded rows and what is known of them."""

    train: Encoded
    held_out: Encoded
    facts: dict[str, Any]


class _Run:
    """One call of `compress`: the six steps, each skipped when the work folder has its result."""

    def __init__(self, config: CompressionConfig, output: Path, report: Report) -> None:
        self.config = config
        self.output = output
        self.report = report
        self.task = TASKS[config.task]
        self.clock = StageClock()
        self.work = WorkFolder(output / WORK_FOLDER)
        device = device_of(config.device)
        self.processes = Processes.join(device)
        self.device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device

    def go(
        self, model: str | ModelReference, data: Any, eval_data: Any, columns: Mapping[str, str] | None, revision: Any
    ) -> CompressionResult:
        self.clock.enter("loading")
        self.report("loading", 0.0, "reading the dataset")
        train_rows, eval_rows = self._read(data, eval_data, columns, revision)
        self.report("loading", 0.3, "loading the model")
        self.reference = model if isinstance(model, ModelReference) else find_model(model)
        transformers.set_seed(self.config.seed)  # a new head starts at random
        self.loaded = load_model(self.reference, train_rows.label_names, self.config)
        self.loaded.model.to(self.device)  # type: ignore[arg-type]  # the wrapped method's types lose `self`
        targets = find_targets(self.loaded.model, self.loaded.body, self.loaded.head)
        self._check_budgets(targets)
        self.report("loading", 0.8, "preparing the rows")
        rows = self._encode(train_rows, eval_rows)
        self.origin = _origin(self.reference)
        self.key = self._key(rows)
        self.report("loading", 1.0, f"{len(rows.train)} rows to train on, {len(rows.held_out)} held out")

        self._warm_up(rows)
        dense = self._evaluate_dense(rows)
        dense_size = size_of(self.loaded.model, list(targets.layers))
        self._adapt(targets, rows)
        sample = rows.train.sample(self.config.calibration_samples, self.config.seed)
        if len(sample) < FEW_SAMPLES:
            logger.warning("only %d calibration rows; covariances lean on their shrinkage", len(sample))
        factors = Decomposition(self.work, self.key, list(targets.layers))
        targets = decompose(
            self.loaded.model, targets, sample, self.config, factors, self.clock, self.report, self.processes
        )
        self.clock.enter("allocating")
        known = spectra(self.loaded.model, targets, sample, self.config, factors, self.report, self.processes)
        allocations = self._allocate(targets, known)
        origin = {
            "config": self.config.model_dump(mode="json"),
            "model": self.origin,
            "dataset": rows.facts,
            "versions": _versions(self.device),
            "calibration_rows": len(sample),
            "left_alone": targets.left_alone,
            "dense": {"metrics": dense, "size": asdict(dense_size)},
        }
        points = [
            self._finish(budget, allocation, factors, known, rows, origin) for budget, allocation in allocations.items()
        ]
        self.clock.enter("evaluating")
        if self.processes.is_first:
            self._verify(points)
        self.clock.enter(None)
        result = CompressionResult(
            self.config.task, self.task.metric, dense_size, dense, points, dict(self.clock.seconds)
        )
        if self.processes.is_first:
            self._show(result, targets)
            self.work.remove()
        self.processes.wait()
        return result

    def _read(self, data: Any, eval_data: Any, columns: Any, revision: str | None) -> tuple[Examples, Examples]:
        source = open_source(data, revision)
        if eval_data is not None:
            source = replace(source, evaluation=open_source(eval_data).train)
        train, evaluation = read_examples(source, self.config.task, columns)
        return (train, evaluation) if evaluation else split(train, self.config.eval_fraction, self.config.seed)

    def _check_budgets(self, targets: Targets) -> None:
        for budget in self.config.budgets:
            check_budget(budget, targets.shapes.values(), self._others(targets), self.config.rank_multiple)

    def _others(self, targets: Targets) -> int:
        """Parameters that count in the budget and that no rank changes."""
        if self.config.budget_scope == "compressible":
            return 0
        return size_of(self.loaded.model, []).parameters - sum(m * n for m, n in targets.shapes.values())

    def _encode(self, train: Examples, held_out: Examples) -> _Data:
        facts = {
            "rows": len(train),
            "eval_rows": len(held_out),
            "classes": train.counts(),
            "sha256": train.fingerprint(),
            "eval_sha256": held_out.fingerprint(),
        }
        encoded = encode(train, self.loaded, self.config), encode(held_out, self.loaded, self.config, scoring=True)
        return _Data(*encoded, facts)

    def _key(self, data: _Data) -> str:
        """Names everything that calibration and decomposition depend on."""
        settings = self.config.model_dump(mode="json", exclude=AFTER_DECOMPOSITION)
        return fingerprint(settings, self.origin, data.facts, _versions(self.device))

    def _warm_up(self, data: _Data) -> None:
        """Train a new head; the same in every process."""
        if self.loaded.head_is_new:
            self.clock.enter("calibrating")
            show = self._note("warming up the task head")
            self._trained("head", self.loaded.head, lambda: warm_up_head(self.loaded, data.train, self.config, show))

    def _adapt(self, targets: Targets, data: _Data) -> None:
        """Tune the model, if it is to be tuned before; from here on `key` names what came of it."""
        model, head, config = self.loaded.model, self.loaded.head, self.config
        if not config.adapter_epochs:
            return
        self.clock.enter("calibrating")
        self.key = fingerprint(self.key, adaptation(config))
        install_adapters(model, targets.layers, config.seed, config.principal_adapters)
        show = self._note("tuning adapters")
        train = lambda: tune_adapters(model, head, data.train, config, show, self.processes)  # noqa: E731
        self._trained("adapters", head | adapter_names(model), train)
        merge_adapters(model)

    def _trained(self, name: str, parts: frozenset[str], train: Callable[[], None]) -> None:
        """Train these parameters, or take them from the work folder."""
        parameters = dict(self.loaded.model.named_parameters())
        if self.work.recall(name, self.key) is None:
            train()
            self._keep(name, self.key, {}, {part: parameters[part] for part in parts})
        else:
            for part, tensor in self.work.tensors(name).items():
                parameters[part].data.copy_(tensor)

    def _evaluate_dense(self, data: _Data) -> Metrics:
        self.clock.enter("evaluating")
        kept = self.work.recall("dense", self.key)
        if kept is not None:
            return kept
        show = part(self.report, "evaluating", 0, 1 + len(self.config.budgets), "the dense model")
        metrics = self._evaluate(self.loaded.model, data, show)
        self._keep("dense", self.key, metrics)
        return metrics

    def _allocate(self, targets: Targets, spectra: Mapping[str, LayerSpectrum]) -> dict[float, Allocation]:
        allocations = {
            budget: allocate(
                spectra,
                budget,
                other_parameters=self._others(targets),
                multiple=self.config.rank_multiple,
                uniform=self.config.allocation == "uniform",
            )
            for budget in self.config.budgets
        }
        self.report("allocating", 1.0, f"{len(allocations)} budgets")
        return allocations

    def _finish(
        self,
        budget: float,
        allocation: Allocation,
        factors: Decomposition,
        spectra: Mapping[str, LayerSpectrum],
        data: _Data,
        origin: dict[str, Any],
    ) -> BudgetResult:
        """Steps 5 and 6 at one budget; the folder appears when it is complete."""
        folder, draft = self.output / f"budget-{budget:g}", self.work.folder / f"budget-{budget:g}"
        settings = self.config.model_dump(mode="json", exclude={"budgets", "max_covariance_bytes"})
        key, seal = fingerprint(self.key, settings, allocation.ranks), f"finished-{budget:g}"
        kept = self.work.recall(seal, key)
        if kept is None or not folder.is_dir():
            size, metrics = self._tune(budget, allocation.ranks, factors, data, draft)
            kept = {"size": asdict(size), "metrics": metrics}
            if self.processes.is_first:
                layers, seconds = _layer_report(factors, spectra, allocation), dict(self.clock.seconds)
                write_report(draft, {**origin, "compressed": kept, "layers": layers, "seconds": seconds})
                shutil.rmtree(folder, ignore_errors=True)
                draft.replace(folder)
            self._keep(seal, key, kept)
        return BudgetResult(
            budget, folder, allocation.kept_fraction, Size(**kept["size"]), kept["metrics"], allocation.ranks
        )

    def _tune(
        self, budget: float, ranks: dict[str, int | None], factors: Decomposition, data: _Data, folder: Path
    ) -> tuple[Size, Metrics]:
        self.clock.enter("finetuning")
        note, number, parts = f"budget {budget:g}", self.config.budgets.index(budget), len(self.config.budgets)
        candidate = copy.deepcopy(self.loaded.model)
        install_cores(candidate, factors.factors, ranks, self.config.core_basis)
        show = part(self.report, "finetuning", number, parts, note)
        loss = repair(self.loaded.model, self.task) if self.config.repairs else None
        finetune_cores(candidate, self.loaded.head, data.train, self.config, show, self.processes, loss)
        deploy(candidate, self.loaded, ranks)
        self.clock.enter("evaluating")
        show = part(self.report, "evaluating", number + 1, 1 + parts, note)
        metrics = self._evaluate(candidate, data, show)
        if self.processes.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            save_checkpoint(candidate, self.loaded.processor, folder, self.config.max_shard_size)
            probe = data.held_out.batch(range(min(PROBE_ROWS, len(data.held_out))))
            save_probe(candidate, probe, self.work.folder / f"probe-{budget:g}.safetensors")
        return size_of(candidate, list(ranks)), metrics

    def _evaluate(self, model: PreTrainedModel, data: _Data, show: Callable[[float], None]) -> Metrics:
        config = self.config
        return evaluate(model, data.held_out, config.task, config.batch_size, show, self.processes)

    def _keep(self, name: str, key: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write a result once; no process goes on before it is there."""
        self.processes.wait()
        if self.processes.is_first:
            self.work.keep(name, key, facts, tensors)
        self.processes.wait()

    def _verify(self, points: list[BudgetResult]) -> None:
        probes = {point.folder: self.work.folder / f"probe-{point.budget:g}.safetensors" for point in points}
        verify_checkpoints(probes, self.task.auto_class)

    def _show(self, result: CompressionResult, targets: Targets) -> None:
        """The frontier as JSON, and pictures of it and of where the ranks went."""
        write_json(self.output / "frontier.json", result.as_dict())
        plot_frontier(result, self.output / "frontier.svg")
        shapes = targets.shapes
        shares = {
            point.budget: {
                name: 1.0 if rank is None else low_rank_parameters(*shapes[name], rank) / math.prod(shapes[name])
                for name, rank in point.ranks.items()
            }
            for point in result.budgets
        }
        plot_ranks(shares, self.output / "ranks.svg")

    def _note(self, what: str) -> Callable[[float], None]:
        """Progress of what comes before the calibration's own."""
        return lambda done: self.report("calibrating", 0.0, f"{what}, {done:.0%}")


def _layer_report(
    factors: Decomposition, spectra: Mapping[str, LayerSpectrum], allocation: Allocation
) -> dict[str, dict[str, Any]]:
    found = {}
    for name, rank in allocation.ranks.items():
        layer, spectrum = factors.layer(name), spectra[name]
        assert layer is not None
        found[name] = {
            "rank": rank,
            "shape": [layer.m, layer.n],
            "k_L/m": layer.out_dimensions / layer.m,
            "k_R/n": layer.in_dimensions / layer.n,
            "loss": spectrum.loss(rank),
            "kept_energy": 1 - spectrum.loss(rank) / (spectrum.loss(0) or 1.0),
            "tokens": layer.tokens,
            "shrinkage": layer.shrinkage,
            "floors": layer.floors,
        }
    return found


def _origin(reference: ModelReference) -> dict[str, Any]:
    """What names the model for good: a commit of the hub, or the hash of every weight file in a folder."""
    files = sorted(Path(reference.location).glob("*.safetensors")) if reference.revision is None else []
    hashes = {file.name: sha256_of(file) for file in files}
    return {"name": reference.name, "revision": reference.revision, "type": reference.model_type, "sha256": hashes}


def _versions(device: torch.device) -> dict[str, str]:
    return {
        "jactus_core": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }
