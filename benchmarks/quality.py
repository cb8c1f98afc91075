"""JACTUS beside its peers: the same model, rows, steps and batch; one result per run, resumed where it stopped.

    python -m benchmarks.quality [--models FOLDER] [--data FOLDER] [--experiments sst2 …] [--methods jactus lora …]

Without folders, models and data come from the hub by the ids in `benchmarks/experiments.py`. The learning rate of each
method is chosen on dev, with the first seed, from a grid of three that moves on while its edge is best. Every run
writes one file below `benchmarks/results/quality`; what is there with the same settings is not run again.
`python -m benchmarks.page` makes tables of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import transformers
from transformers import PreTrainedModel

from benchmarks.experiments import EXPERIMENTS, SMALL
from benchmarks.methods import METHODS
from benchmarks.recording import write_result
from benchmarks.runs import Run, missing
from benchmarks.trial import Trial
from jactus_core.errors import NonFiniteLoss
from jactus_core.evaluation import size_of
from jactus_core.tasks import TASKS


def run_experiments(names: Sequence[str], options: argparse.Namespace) -> None:
    transformers.utils.logging.set_verbosity_error()
    for name in names:
        for seed in (seed for seed in options.seeds if seed < EXPERIMENTS[name].seeds):
            trial: Trial | None = None
            for run in missing(name, options.methods, seed):
                trial = trial or Trial(EXPERIMENTS[name], seed, options.models, options.data)
                measure(run, trial)


def measure(run: Run, trial: Trial) -> None:
    """Train, score and keep; what diverges scores as badly as can be."""
    began = time.monotonic()
    model: PreTrainedModel | None = None
    try:
        model = METHODS[run.method].run(trial, run.budget, run.rate)
    except NonFiniteLoss as error:
        print(f"{run}: {error}", flush=True)
    seconds = time.monotonic() - began
    worst = {trial.metric: 0.0 if TASKS[EXPERIMENTS[run.experiment].task].higher_is_better else sys.float_info.max}
    dev = trial.scores(model, trial.dev) if model else worst
    tests = trial.test_scores(model) if model else dict.fromkeys(trial.tests, worst)
    write_result(
        run.file,
        {
            "experiment": run.experiment,
            "method": run.method,
            "budget": run.budget,
            "learning_rate": run.rate,
            "seed": run.seed,
            "dev": dev,
            "test": {key: statistics.mean(test[key] for test in tests.values()) for key in next(iter(tests.values()))},
            **({"tests": tests} if len(tests) > 1 else {}),
            "parameters": size_of(model, []).parameters if model else None,
            "seconds": round(seconds, 1),
            "settings": run.settings,
        },
    )
    print(f"{run.experiment:<16} {run.file.stem:<40} dev {dev[trial.metric]:.4f}  {seconds:5.0f} s", flush=True)


def chains(names: Sequence[str]) -> list[list[str]]:
    """Experiments that take another's learning rates come behind it."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(EXPERIMENTS[name].rates_of or name, []).append(name)
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of models, instead of the hub")
    parser.add_argument("--data", type=Path, help="folder of datasets, instead of the hub")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(SMALL), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1, help="experiments that run side by side")
    options = parser.parse_args()
    if options.processes == 1:
        run_experiments(options.experiments, options)
        return
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for done in [pool.submit(run_experiments, chain, options) for chain in chains(options.experiments)]:
            done.result()


if __name__ == "__main__":
    main()
