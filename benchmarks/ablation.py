"""Every switch of the method, and levers beyond it, one at a time against the defaults: quality on dev.

    python -m benchmarks.ablation [--models FOLDER] [--data FOLDER] [--sets sst2 dtd10 gsm8k-text] [--seeds 0 1 2]

Takes experiments of `benchmarks/experiments.py`, shortened. Without folders, models and data come from the hub. Adds to
what earlier runs found, and fills the tables in docs/method.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from benchmarks.experiment import Experiment
from benchmarks.experiments import EXPERIMENTS
from benchmarks.findings import cell
from benchmarks.levers import LEVERS
from benchmarks.recording import METHOD_PAGE, fill, keep, kept, markdown
from benchmarks.trial import Trial
from jactus_core.config import CompressionConfig
from jactus_core.tasks import TASKS

THRESHOLDS = {"union": "thresholds"}
UNIFORM = {"allocation": "uniform"}
FEW = {"calibration_samples": 8}
FINEST = "rank multiple: 1"
"""What all variants below it change: with ranks this fine no rounding hides a difference."""
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    FINEST: {},
    "rank multiple: 8": {"rank_multiple": 8},
    "rank multiple: 64": {"rank_multiple": 64},
    "weighting: input": {"weighting": "input"},
    "weighting: none": {"weighting": "none"},
    "weighting: input, allocation: uniform": {"weighting": "input", **UNIFORM},
    "weighting: none, allocation: uniform": {"weighting": "none", **UNIFORM},
    "allocation: uniform": UNIFORM,
    "allocation: measured": {"allocation": "measured"},
    "core basis: orthonormal": {"core_basis": "orthonormal"},
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
    "8 calibration rows": FEW,
    "8 calibration rows, shrinkage: 0": {"shrinkage": 0.0, **FEW},
    "fisher: sampled": {"fisher": "sampled"},
    "trained: core+norms": {"trained": "core+norms"},
    "trained: factors": {"trained": "factors"},
}
Variant = Mapping[str, Any] | Callable[[Trial], PreTrainedModel]
"""Settings to change, or a lever."""
ON_CLASSIFIERS: Mapping[str, Variant] = {
    "dense, head tuned": lambda trial: trial.loaded.model,
    **VARIANTS,
    **{f"adapters first, {start}": {"adapter_share": 0.75, "adapter_start": start} for start in ("zero", "principal")},
    **LEVERS,
}
ON_LANGUAGE: Mapping[str, Variant] = {
    "dense, untouched": lambda trial: trial.loaded.model,
    FINEST: {},
    **{name: VARIANTS[name] for name in ("weighting: input", "weighting: none", "allocation: uniform")},
    "allocation: global": {"allocation": "global"},
    "fisher: empirical": {"fisher": "empirical"},
    **{f"adapter share: {share:g}": {"adapter_share": share} for share in (0, 0.5, 0.9)},
}
SETS = {"sst2": ON_CLASSIFIERS, "emotion": ON_CLASSIFIERS, "dtd10": ON_CLASSIFIERS, "gsm8k-text": ON_LANGUAGE}
ROWS = {"text-classification": 1280, "image-classification": 480, "text-generation": 480}
SHORT = {"epochs": 1, "batch_size": 16, "rank_multiple": 1, "dtype": "float32"}
CORES_ALONE = {"adapter_share": 0.0}
"""Classifiers are ablated without adapters, which have rows of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of models, instead of the hub")
    parser.add_argument("--data", type=Path, help="folder of datasets, instead of the hub")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    known = {**ON_CLASSIFIERS, **ON_LANGUAGE}
    parser.add_argument("--variants", nargs="+", choices=known, default=list(known), metavar="NAME")
    parser.add_argument("--budget", type=float, default=0.5)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    same = kept("ablation", "settings") == SHORT and kept("ablation", "rows") == ROWS
    found: dict[str, dict[str, dict[str, float]]] = kept("ablation", "scores") if same else {}
    for seed in options.seeds:
        for name in options.sets:
            trial = Trial(short(EXPERIMENTS[name], options.budget), seed, options.models, options.data)
            for title, variant in SETS[name].items():
                if title in options.variants:
                    score = measure(trial, variant)
                    found.setdefault(name, {}).setdefault(title, {})[str(seed)] = score
                    print(f"{name:<10} seed {seed}  {score:8.4f}  {title}", flush=True)
            keep("ablation", {"budget": options.budget, "scores": found, "rows": ROWS, "settings": SHORT})
    fill(METHOD_PAGE, "ablation", text(found, options.budget))


def measure(trial: Trial, variant: Variant) -> float:
    """What it reaches on dev."""
    if callable(variant):
        return trial.dev_score(variant(trial))
    config = CompressionConfig.model_validate(trial.config.model_dump() | dict(variant))
    return trial.dev_score(trial.tuned(config, *trial.compressed(config)))


def short(experiment: Experiment, budget: float) -> Experiment:
    """The same on fewer rows, with the finest ranks."""
    apart = CORES_ALONE if TASKS[experiment.task].is_classification else {}
    settings = {**experiment.settings, **SHORT, **apart, "budgets": (budget,)}
    rows = ROWS[experiment.task]
    return replace(experiment, rows=rows, scored_rows=(600, 1), settings=settings)


Found = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Scores by set, variant and seed."""


def text(found: Found, budget: float) -> str:
    """What stands on the page: a table per kind of model."""
    parts = [{name: found[name] for name in found if SETS[name] is of} for of in (ON_CLASSIFIERS, ON_LANGUAGE)]
    return "\n\n".join([caption(found, budget), *(table(part) for part in parts if part)])


def caption(found: Found, budget: float) -> str:
    seeds = ", ".join(f"{name} {len(variants[FINEST])}" for name, variants in found.items())
    return (
        f"Accuracy in percent, or a language model's perplexity, on dev at a budget of {budget:g} after one short\n"
        f"epoch, mean and standard deviation over seeds (seeds: {seeds}). All rows below `{FINEST}`\n"
        "change one thing of that row. `benchmarks/results/ablation.json` has every run."
    )


def table(found: Found) -> str:
    """The score of each variant on sets that have the same ones."""
    variants = SETS[next(iter(found))]
    rows = [[variant, *(cell(name, found[name].get(variant, {})) for name in found)] for variant in variants]
    return markdown(["variant", *found], rows)


if __name__ == "__main__":
    began = time.monotonic()
    torch.use_deterministic_algorithms(True, warn_only=True)
    main()
    print(f"{time.monotonic() - began:.0f} s")
