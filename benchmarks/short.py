"""The comparison in minutes: one model per modality, the main methods at one rate and one seed; keeps nothing.

    python -m benchmarks.short [--models FOLDER] [--data FOLDER] [--experiments emotion dtd10 arc-easy]
    python -m benchmarks.short --model HUB_ID --dataset HUB_ID[:CONFIGURATION] --task text-classification [--rows 3200]

The second form takes a model and a dataset of your own, whose columns have the names that the task reads. One seed and
few steps say little about a point of accuracy; `python -m benchmarks.quality` is for that.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import transformers

from benchmarks.experiment import Experiment
from benchmarks.experiments import EXPERIMENTS
from benchmarks.findings import Column
from benchmarks.methods import METHODS
from benchmarks.trial import Trial
from jactus_core.tasks import TASK_NAMES, TASKS

RATE = 1e-3
COLUMNS = (
    Column("untouched", 1.0),
    Column("lora", 1.0),
    Column("jactus", 0.8),
    Column("jactus", 0.4),
    Column("svd-llm+lora", 0.8),
    Column("svd-llm+lora", 0.4),
)
SHORT: Mapping[str, int] = {"emotion": 1600, "dtd10": 640, "arc-easy": 160}
"""Rows, which one epoch goes over once."""
SCORED = {"multiple-choice": 60}
SCORED_ELSE = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of models, instead of the hub")
    parser.add_argument("--data", type=Path, help="folder of datasets, instead of the hub")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(SHORT), metavar="NAME")
    parser.add_argument("--model", help="a model of your own, on the hub")
    parser.add_argument("--dataset", help="a dataset of your own, on the hub")
    parser.add_argument("--task", choices=TASK_NAMES, default="text-classification")
    parser.add_argument("--rows", type=int, help="to train on")
    options = parser.parse_args()
    if (options.model is None) != (options.dataset is None):
        parser.error("--model and --dataset go together")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.model:
        run(options.model, own(options), None, None)
    else:
        for name in options.experiments:
            experiment = shortened(EXPERIMENTS[name], options.rows or SHORT.get(name, EXPERIMENTS[name].rows))
            run(name, experiment, options.models, options.data)


def own(options: argparse.Namespace) -> Experiment:
    """An experiment of the user's model and dataset."""
    found = Experiment(options.task, options.model, options.dataset, options.rows or 3200, {"batch_size": 16})
    return shortened(found, found.rows)


def shortened(experiment: Experiment, rows: int) -> Experiment:
    scored = SCORED.get(experiment.task, SCORED_ELSE)
    settings = {**experiment.settings, "epochs": 1, "calibration_samples": 256}
    return replace(experiment, rows=rows, scored_rows=(1, scored), settings=settings)


def run(name: str, experiment: Experiment, models: Path | None, data: Path | None) -> None:
    """Print one line per method as it is done."""
    trial = Trial(experiment, 0, models, data)
    metric = TASKS[experiment.task].metric
    print(f"\n{name}: {len(trial.train)} rows to train on\n{'':<24}{'kept':>6}{metric:>12}{'seconds':>10}", flush=True)
    for column in COLUMNS:
        method = METHODS[column.method]
        began = time.monotonic()
        model = method.run(trial, column.budget, RATE)
        seconds = time.monotonic() - began
        score = next(iter(trial.test_scores(model).values()))[metric]
        print(f"{method.title:<24}{column.budget:>6.0%}{score:>12.4f}{seconds:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
