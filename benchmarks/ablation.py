"""Every switch of the method, and levers beyond it, one at a time against the defaults: quality on dev.

    python -m benchmarks.ablation [--models FOLDER] [--data FOLDER] [--sets sst2 emotion dtd10] [--seeds 0 1 2]

Takes experiments of `benchmarks/experiments.py`, shortened. Without folders, models and data come from the hub. Adds to
what earlier runs found, and fills the table in docs/method.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.experiment import Experiment
from benchmarks.experiments import EXPERIMENTS
from benchmarks.levers import LEVERS
from benchmarks.recording import METHOD_PAGE, fill, keep, kept
from benchmarks.trial import Trial
from jactus_core.config import CompressionConfig

THRESHOLDS = {"union": "thresholds"}
UNIFORM = {"allocation": "uniform"}
FEW = {"calibration_samples": 8}
FINEST = "rank multiple: 1"
"""What all variants below it change: with ranks this fine no rounding hides a difference."""
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {"rank_multiple": CompressionConfig().rank_multiple},
    FINEST: {},
    "rank multiple: 64": {"rank_multiple": 64},
    "weighting: input": {"weighting": "input"},
    "weighting: none": {"weighting": "none"},
    "weighting: input, allocation: uniform": {"weighting": "input", **UNIFORM},
    "weighting: none, allocation: uniform": {"weighting": "none", **UNIFORM},
    "allocation: uniform": UNIFORM,
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
DENSE = "dense, head tuned"
SETS = ("sst2", "emotion", "dtd10")
ROWS = {"text-classification": 1280, "image-classification": 480}
SHORT = {"epochs": 1, "batch_size": 16, "rank_multiple": 1, "dtype": "float32"}
MEASURED = (DENSE, *VARIANTS, *LEVERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of models, instead of the hub")
    parser.add_argument("--data", type=Path, help="folder of datasets, instead of the hub")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=MEASURED, default=MEASURED, metavar="NAME")
    parser.add_argument("--budget", type=float, default=0.5)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    same = kept("ablation", "settings") == SHORT and kept("ablation", "rows") == ROWS
    found: dict[str, dict[str, dict[str, float]]] = kept("ablation", "accuracy") if same else {}
    for seed in options.seeds:
        for name in options.sets:
            trial = Trial(short(EXPERIMENTS[name], options.budget), seed, options.models, options.data)
            for variant in options.variants:
                accuracy = measure(trial, variant)
                found.setdefault(name, {}).setdefault(variant, {})[str(seed)] = accuracy
                print(f"{name:<8} seed {seed}  {accuracy:6.1%}  {variant}", flush=True)
            keep("ablation", {"budget": options.budget, "accuracy": found, "rows": ROWS, "settings": SHORT})
    fill(METHOD_PAGE, "ablation", f"{caption(found, options.budget)}\n\n{table(found)}")


def measure(trial: Trial, variant: str) -> float:
    """The accuracy that a variant reaches, or the dense model with its head tuned."""
    if variant == DENSE:
        return trial.dev_score(trial.loaded.model)
    if variant in LEVERS:
        return trial.dev_score(LEVERS[variant](trial))
    config = CompressionConfig.model_validate(trial.config.model_dump() | dict(VARIANTS[variant]))
    return trial.dev_score(trial.tuned(config, *trial.compressed(config)))


def short(experiment: Experiment, budget: float) -> Experiment:
    """The same on fewer rows, with the finest ranks."""
    settings = {**experiment.settings, **SHORT, "budgets": (budget,)}
    rows = ROWS[experiment.task]
    return replace(experiment, rows=rows, scored_rows=(600, 1), settings=settings)


def caption(found: Mapping[str, Mapping[str, Mapping[str, float]]], budget: float) -> str:
    seeds = ", ".join(f"{name} {len(variants['defaults'])}" for name, variants in found.items())
    return (
        f"Accuracy in percent on dev at a budget of {budget:g} after one short epoch, mean and standard\n"
        f"deviation over seeds (seeds: {seeds}). All rows below `{FINEST}` change one thing of that row.\n"
        "`benchmarks/results/ablation.json` has every run."
    )


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Mean accuracy over seeds, and its standard deviation, of each variant on each set."""
    sets = list(found)
    lines = [f"| variant | {' | '.join(sets)} |", f"| --- |{' --- |' * len(sets)}"]
    for variant in MEASURED:
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
