"""Every switch of the method, one at a time against the defaults: quality on held-out rows, several seeds.

    python -m benchmarks.ablation --models FOLDER --data FOLDER [--sets sst2 emotion dtd] [--seeds 3]

FOLDER of models holds Hugging Face folders by the names in SETS, FOLDER of data the files named there. One seed's
calibration serves all variants that do not change it. Fills the table in docs/method.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.recording import RESULTS, fill, keep
from jactus_core.allocation import LayerSpectrum, allocate
from jactus_core.calibration import LayerStatistics, calibrate, find_readers
from jactus_core.checkpoint import deploy
from jactus_core.config import CompressionConfig
from jactus_core.decomposition import factorized
from jactus_core.encoding import Encoded, encode
from jactus_core.evaluation import evaluate
from jactus_core.examples import Examples, read_examples
from jactus_core.finetuning import finetune_cores, warm_up_head
from jactus_core.layers import Targets, find_targets, install_cores
from jactus_core.loading import Loaded, load_model
from jactus_core.models import find_model
from jactus_core.sources import Source, open_source
from jactus_core.tasks import TaskName

THRESHOLDS = {"union": "thresholds"}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "weighting: input": {"weighting": "input"},
    "weighting: none": {"weighting": "none"},
    "union: thresholds 0.95 / 0.99 / 0.99": THRESHOLDS,
    "union: thresholds 0.9 / 0.95 / 0.95": {
        **THRESHOLDS,
        "weight_energy": 0.9,
        "input_energy": 0.95,
        "gradient_energy": 0.95,
    },
    "shrinkage: oas": {"shrinkage": "oas"},
    "shrinkage: 0": {"shrinkage": 0.0},
    "shrinkage: 0.5": {"shrinkage": 0.5},
    "fisher: sampled": {"fisher": "sampled"},
    "allocation: uniform": {"allocation": "uniform"},
    "core basis: orthonormal": {"core_basis": "orthonormal"},
    "trained: core+norms": {"trained": "core+norms"},
    "trained: factors": {"trained": "factors"},
    "rank multiple: 8": {"rank_multiple": 8},
    "rank multiple: 64": {"rank_multiple": 64},
    "8 calibration rows": {"calibration_samples": 8},
}


@dataclass(frozen=True)
class Set:
    """A dataset, the model it is for, and how much of both an ablation can afford."""

    task: TaskName
    model: str
    train: str
    evaluation: str | None  # None: the archive has both splits
    rows: int  # to train on
    eval_rows: int
    settings: Mapping[str, Any]


SETS: Mapping[str, Set] = {
    "sst2": Set(
        "text-classification", "minilm", "text/sst2/train.jsonl", "text/sst2/test.jsonl", 1280, 600, {"max_length": 48}
    ),
    "emotion": Set(
        "text-classification",
        "minilm",
        "text/tweet_emotion/train.jsonl",
        "text/tweet_emotion/test.jsonl",
        1280,
        600,
        {"max_length": 48},
    ),
    "dtd": Set("image-classification", "vit-s", "image/dtd_10classes.zip", None, 480, 300, {"image_size": 98}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.5)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    found = _kept()
    for seed in range(options.seeds):
        for name in options.sets:
            for variant, accuracy in run(SETS[name], options.models, options.data, seed, options.budget):
                found.setdefault(name, {}).setdefault(variant, {})[str(seed)] = accuracy
                print(f"{name:<8} seed {seed}  {accuracy:6.1%}  {variant}", flush=True)
            keep("ablation", {"budget": options.budget, "accuracy": found, "sets": {n: vars(SETS[n]) for n in found}})
    fill("ablation", f"{caption(found, options.budget)}\n\n{table(found)}")


def _kept() -> dict[str, dict[str, dict[str, float]]]:
    """What earlier runs found, so that sets and seeds can be run one by one."""
    file = RESULTS / "ablation.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))["accuracy"]) if file.exists() else {}


def run(set_: Set, models: Path, data: Path, seed: int, budget: float) -> Iterator[tuple[str, float]]:
    """The accuracy of every variant, after those of the dense model with its head tuned."""
    base = CompressionConfig(task=set_.task, seed=seed, epochs=1, budgets=(budget,), **set_.settings)
    loaded, train, held_out = _prepare(set_, models, data, base)
    yield "dense, head tuned", evaluate(loaded.model, held_out, base.task, 32)["accuracy"]
    targets = find_targets(loaded.model, loaded.body, loaded.head)
    sample = train.sample(base.calibration_samples, seed)
    batches = [sample.batch(rows) for rows in sample.batch_rows(base.batch_size, seed)]
    groups = find_readers(loaded.model, targets.layers, batches[0])
    seen: dict[tuple[str, int], dict[str, LayerStatistics]] = {}
    for variant, changes in VARIANTS.items():
        config = CompressionConfig.model_validate(base.model_dump() | dict(changes))
        key = config.fisher, config.calibration_samples
        if key not in seen:
            few = train.sample(config.calibration_samples, seed)
            batches = [few.batch(rows) for rows in few.batch_rows(config.batch_size, seed)]
            transformers.set_seed(seed)
            sampled = config.fisher == "sampled"
            seen[key] = calibrate(loaded.model, targets.layers, groups, batches, sampled)
        yield variant, _tuned(loaded, targets, groups, seen[key], train, held_out, config)


def _prepare(set_: Set, models: Path, data: Path, config: CompressionConfig) -> tuple[Loaded, Encoded, Encoded]:
    source = open_source(data / set_.train)
    if set_.evaluation:
        source = Source(source.train, open_source(data / set_.evaluation).train)
    train, held_out = read_examples(source, set_.task)
    assert held_out is not None
    transformers.set_seed(config.seed)
    loaded = load_model(find_model(str(models / set_.model)), train.label_names, config)
    encoded = encode(_some(train, set_.rows, config.seed), loaded, config)
    warm_up_head(loaded, encoded, config, lambda done: None)
    return loaded, encoded, encode(_some(held_out, set_.eval_rows, 0), loaded, config, scoring=True)


def _some(examples: Examples, rows: int, seed: int) -> Examples:
    return examples.select(random.Random(seed).sample(range(len(examples)), min(rows, len(examples))))


def _tuned(
    loaded: Loaded,
    targets: Targets,
    groups: list[list[str]],
    statistics: Mapping[str, LayerStatistics],
    train: Encoded,
    held_out: Encoded,
    config: CompressionConfig,
) -> float:
    factors, spectra = {}, {}
    for group in groups:
        for name, layer, found in factorized(targets, {name: statistics[name] for name in group}, config):
            factors[name] = found
            spectra[name] = LayerSpectrum(
                layer.m, layer.n, found.singular.numpy(), found.outside, layer.tokens, found.rank
            )
    uniform = config.allocation == "uniform"
    ranks = allocate(spectra, config.budgets[0], multiple=config.rank_multiple, uniform=uniform).ranks
    model = copy.deepcopy(loaded.model)
    install_cores(model, factors.__getitem__, ranks, config.core_basis)
    finetune_cores(model, loaded.head, train, config, lambda done: None)
    return evaluate(deploy(model, loaded, ranks), held_out, config.task, 32)["accuracy"]


def caption(found: Mapping[str, Mapping[str, Mapping[str, float]]], budget: float) -> str:
    seeds = ", ".join(f"{name} {len(variants['defaults'])}" for name, variants in found.items())
    return (
        f"Accuracy in percent on held-out rows at a budget of {budget:g} after one short epoch, mean and standard\n"
        f"deviation over seeds (seeds: {seeds}). `benchmarks/results/ablation.json` has every run."
    )


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Mean accuracy over seeds, and its standard deviation, of each variant on each set."""
    sets = list(found)
    lines = [f"| variant | {' | '.join(sets)} |", f"| --- |{' --- |' * len(sets)}"]
    for variant in ("dense, head tuned", *VARIANTS):
        cells = []
        for name in sets:
            values = list(found[name].get(variant, {}).values())
            spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{100 * statistics.mean(values):.1f}{spread}" if values else "")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    began = time.monotonic()
    torch.use_deterministic_algorithms(True, warn_only=True)
    main()
    print(f"{time.monotonic() - began:.0f} s")
