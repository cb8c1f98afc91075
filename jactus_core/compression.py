"""The one verb: `compress` runs the six steps of the method in the order of the paper."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from jactus_core import __version__
from jactus_core.allocation import Allocation, LayerSpectrum, allocate, check_budget
from jactus_core.calibration import LayerStatistics, Moments, calibrate
from jactus_core.checkpoint import deployed, save_checkpoint
from jactus_core.config import CompressionConfig
from jactus_core.data import LabelledTexts, as_texts, split
from jactus_core.evaluation import Size, accuracy, size_of
from jactus_core.factorization import Factorization, Side, factorize
from jactus_core.finetuning import finetune_cores, warm_up_head
from jactus_core.layers import compressible_layers, install_cores
from jactus_core.loading import Classifier, load_classifier
from jactus_core.models import ModelReference, find_model
from jactus_core.progress import Report, Stage, StageClock, silent
from jactus_core.tokenized import TokenizedTexts, to_device

EVALUATION_BATCH = 64
WARMUP_SHARE_OF_CALIBRATION = 0.6
"""How much of the calibrating stage's progress bar the head's warm-up takes."""


@dataclass(frozen=True)
class BudgetResult:
    """One point of the frontier."""

    budget: float
    folder: Path
    kept_fraction: float  # of the compressible parameters, never above `budget`
    size: Size
    accuracy: float
    ranks: dict[str, int | None]  # None: the layer stays dense


@dataclass(frozen=True)
class CompressionResult:
    """What one calibration gave at every budget, against the dense model with the same warmed-up head."""

    dense_size: Size
    dense_accuracy: float
    budgets: list[BudgetResult]
    seconds: dict[str, float]  # by stage

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; folders by name, so that the result can travel."""
        points = [{**asdict(point), "folder": point.folder.name} for point in self.budgets]
        return {**asdict(self), "budgets": points}


def compress(
    model: str | ModelReference,
    data: str | Path | Sequence[dict[str, Any]] | LabelledTexts,
    output: str | Path,
    config: CompressionConfig | None = None,
    *,
    budgets: Sequence[float] | None = None,
    text_column: str = "text",
    label_column: str = "label",
    report: Report = silent,
) -> CompressionResult:
    """Compress a text classifier and tune it for the task in `data`; one checkpoint folder per budget in `output`.

    `model` is a hub id or a folder; `data` a CSV or JSON-lines file, or a list of dictionaries; `budgets`, fractions
    of the compressible parameters to keep, overrides those of `config`. Raises a JactusError with a code and a remedy.
    """
    config = config or CompressionConfig()
    if budgets is not None:
        config = CompressionConfig.model_validate({**config.model_dump(), "budgets": budgets})
    output = Path(output)
    clock = StageClock()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    clock.enter("loading")
    report("loading", 0.0, "reading the dataset")
    rows = data if isinstance(data, LabelledTexts) else as_texts(data, text_column, label_column)
    train_rows, eval_rows = split(rows, config.eval_fraction, config.seed)
    report("loading", 0.3, "loading the model")
    reference = model if isinstance(model, ModelReference) else find_model(model)
    transformers.set_seed(config.seed)  # a new head starts at random
    classifier = load_classifier(reference, rows.label_names)
    classifier.model.to(device)  # type: ignore[arg-type]  # the wrapped method's types lose `self`
    layers = compressible_layers(classifier.model, classifier.head)
    shapes = [_shape(layer) for layer in layers.values()]
    for budget in config.budgets:
        check_budget(budget, shapes)
    report("loading", 0.8, "tokenizing")
    max_length = min(config.max_length, classifier.max_tokens)
    train = TokenizedTexts(train_rows, classifier.tokenizer, max_length)
    held_out = TokenizedTexts(eval_rows, classifier.tokenizer, max_length)
    report("loading", 1.0, f"{len(train)} rows to train on, {len(held_out)} held out, {len(layers)} layers")

    clock.enter("calibrating")
    statistics = _calibrate(classifier, layers, train, config, report)
    report("calibrating", 1.0, f"covariances of {len(layers)} layers")

    clock.enter("evaluating")
    show = _part(report, "evaluating", 0, 1 + len(config.budgets), "the dense model")
    dense_accuracy = accuracy(classifier.model, held_out, EVALUATION_BATCH, show)
    dense_size = size_of(classifier.model, list(layers))

    clock.enter("decomposing")
    factors = _decompose(layers, statistics, config, report)

    clock.enter("allocating")
    spectra = {name: _spectrum(layers[name], factors[name], statistics[name]) for name in layers}
    allocations = {budget: allocate(spectra, budget) for budget in config.budgets}
    report("allocating", 1.0, f"{len(config.budgets)} budgets")

    origin = {
        "config": config.model_dump(mode="json"),
        "model": asdict(reference) | {"location": reference.name},
        "dataset": _fingerprint(rows),
        "versions": _versions(device),
        "dense": {"accuracy": dense_accuracy, "size": asdict(dense_size)},
    }
    results = []
    for number, (budget, allocation) in enumerate(allocations.items()):
        note = f"budget {budget:g}"
        clock.enter("finetuning")
        candidate = copy.deepcopy(classifier.model)
        install_cores(candidate, factors, allocation.ranks)
        show = _part(report, "finetuning", number, len(allocations), note)
        finetune_cores(candidate, classifier.head, train, config, show)
        compressed = deployed(candidate, allocation.ranks)
        clock.enter("evaluating")
        show = _part(report, "evaluating", number + 1, 1 + len(allocations), note)
        score = accuracy(compressed, held_out, EVALUATION_BATCH, show)
        size = size_of(compressed, list(layers))
        folder = output / f"budget-{budget:g}"
        point = BudgetResult(budget, folder, allocation.kept_fraction, size, score, allocation.ranks)
        provenance = {
            **origin,
            "compressed": {"accuracy": score, "size": asdict(size)},
            "layers": _layer_report(factors, allocation, spectra),
        }
        save_checkpoint(compressed, classifier.tokenizer, provenance, folder)
        results.append(point)

    clock.enter(None)
    result = CompressionResult(dense_size, dense_accuracy, results, clock.seconds)
    (output / "frontier.json").write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    return result


def _calibrate(
    classifier: Classifier,
    layers: dict[str, nn.Linear],
    train: TokenizedTexts,
    config: CompressionConfig,
    report: Report,
) -> dict[str, LayerStatistics]:
    warmed = 0.0
    if classifier.head_is_new:
        warmed = WARMUP_SHARE_OF_CALIBRATION
        warm_up_head(
            classifier.model,
            classifier.head,
            train,
            config,
            lambda done: report("calibrating", warmed * done, "warming up the task head"),
        )
    calibration = train.sample(config.calibration_samples, config.seed)

    def batches() -> Iterator[dict[str, Tensor]]:
        done = 0
        for batch in calibration.batches(config.batch_size, by_length=True):
            yield to_device(batch, classifier.model.device)
            done += len(batch["labels"])
            report("calibrating", warmed + (1 - warmed) * done / len(calibration), "accumulating covariances")

    return calibrate(classifier.model, layers, batches())


def _decompose(
    layers: dict[str, nn.Linear], statistics: dict[str, LayerStatistics], config: CompressionConfig, report: Report
) -> dict[str, Factorization]:
    """Factorize every layer under the configured weighting; layers that read the same tensor share its side."""
    sides: dict[int, Side] = {}
    factors = {}
    for number, (name, layer) in enumerate(layers.items(), start=1):
        weight, seen = layer.weight.detach(), statistics[name]
        if id(seen.inputs) not in sides:
            sides[id(seen.inputs)] = _side(seen.inputs, config.weighting != "none", config.input_energy, config)
        outputs = _side(seen.gradients, config.weighting == "fisher", config.gradient_energy, config)
        factors[name] = factorize(weight, sides[id(seen.inputs)], outputs, config.weight_energy)
        report("decomposing", number / len(layers), name)
    return factors


def _side(moments: Moments, weighted: bool, energy: float, config: CompressionConfig) -> Side:
    covariance = moments.shrunk() if weighted else torch.eye(len(moments.total), dtype=torch.float64)
    return Side.of(covariance.to(moments.total.device), energy, config.covariance_floor)


def _spectrum(layer: nn.Linear, factors: Factorization, statistics: LayerStatistics) -> LayerSpectrum:
    m, n = _shape(layer)
    return LayerSpectrum(m, n, factors.singular.cpu().numpy(), factors.outside, statistics.gradients.count)


def _shape(layer: nn.Linear) -> tuple[int, int]:
    return layer.out_features, layer.in_features


def _part(report: Report, stage: Stage, index: int, parts: int, note: str) -> Callable[[float], None]:
    """Progress of one of several equal parts of a stage."""
    return lambda done: report(stage, (index + done) / parts, note)


def _layer_report(
    factors: dict[str, Factorization], allocation: Allocation, spectra: dict[str, LayerSpectrum]
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "rank": rank,
            "shape": [spectra[name].m, spectra[name].n],
            "k_L/m": factors[name].out_dimensions / spectra[name].m,
            "k_R/n": factors[name].in_dimensions / spectra[name].n,
            "loss": spectra[name].loss(rank),
        }
        for name, rank in allocation.ranks.items()
    }


def _fingerprint(rows: LabelledTexts) -> dict[str, Any]:
    digest = hashlib.sha256()
    for text, label in zip(rows.texts, rows.labels, strict=True):
        digest.update(json.dumps([text, rows.label_names[label]]).encode())
    return {"rows": len(rows), "classes": rows.counts(), "sha256": digest.hexdigest()}


def _versions(device: torch.device) -> dict[str, str]:
    return {
        "jactus_core": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }
