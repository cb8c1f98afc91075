"""What the results on disk say: scores by seed, means, spreads and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.experiments import EXPERIMENTS, SMALL
from benchmarks.runs import Run, chosen_rate, is_hopeless
from jactus_core.tasks import TASKS

ADAPTERS = ("lora", "dora", "pissa")
"""What keeps all parameters and tunes few of them."""
OURS = "jactus"


@dataclass(frozen=True)
class Column:
    """A method at a budget."""

    method: str
    budget: float


@dataclass(frozen=True)
class Difference:
    """Of one column minus another, in the metric's unit, paired by experiment and seed."""

    by_experiment: Mapping[str, Sequence[float]]

    @property
    def mean(self) -> float:
        """Every experiment counts the same, whatever its number of seeds."""
        return statistics.mean(statistics.mean(values) for values in self.by_experiment.values())

    @property
    def error(self) -> float:
        """Standard error of the mean, from the spread between experiments."""
        means = [statistics.mean(values) for values in self.by_experiment.values()]
        return statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else float("nan")


def scores(experiment: str, column: Column) -> dict[int, float]:
    """The task's metric on test by seed, at the learning rate that was chosen on dev."""
    return {seed: found["test"][metric_of(experiment)] for seed, found in results(experiment, column).items()}


def results(experiment: str, column: Column) -> dict[int, dict[str, Any]]:
    return {run.seed: found for run in runs(experiment, column) if (found := run.result()) is not None}


def runs(experiment: str, column: Column) -> list[Run]:
    """One per seed, at the chosen learning rate; none as long as that is not known."""
    rate = chosen_rate(experiment, column.method)
    seeds = range(EXPERIMENTS[experiment].seeds) if rate is not None else ()
    return [Run(experiment, column.method, column.budget, rate or 0.0, seed) for seed in seeds]


def is_complete(experiment: str, column: Column) -> bool:
    """Whether nothing is left to be run; a hopeless one is not repeated."""
    wanted = runs(experiment, column)
    return bool(wanted) and all(run.result() is not None or is_hopeless(run) for run in wanted)


def metric_of(experiment: str) -> str:
    return TASKS[EXPERIMENTS[experiment].task].metric


def cell(experiment: str, values: Mapping[Any, float]) -> str:
    """Mean ± standard deviation over seeds of the experiment's metric, accuracies in percent; empty for none."""
    scale, digits = (100, 1) if metric_of(experiment) == "accuracy" else (1, 2)
    if not values:
        return ""
    spread = f" ± {scale * statistics.stdev(values.values()):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values.values()):.{digits}f}{spread}"


def complete(columns: Sequence[Column]) -> list[str]:
    """Experiments with an accuracy for which every column is complete."""
    accurate = (name for name in SMALL if metric_of(name) == "accuracy")
    return [name for name in accurate if all(is_complete(name, column) for column in columns)]


def mean(experiments: Sequence[str], column: Column) -> float:
    return statistics.mean(statistics.mean(scores(name, column).values()) for name in experiments)


def best(experiments: Sequence[str], columns: Sequence[Column]) -> Column:
    """The column with the highest mean over these experiments; a hopeless one, left out of some, is not the best."""
    return max((column for column in columns if is_everywhere(experiments, column)), key=lambda c: mean(experiments, c))


def is_everywhere(experiments: Sequence[str], column: Column) -> bool:
    return all(scores(name, column) for name in experiments)


def difference(experiments: Sequence[str], ours: Column, theirs: Column) -> Difference:
    found = {}
    for name in experiments:
        mine, other = scores(name, ours), scores(name, theirs)
        found[name] = [mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())]
    return Difference(found)
