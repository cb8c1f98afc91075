"""Which models are to be trained: the grid of learning rates on dev, then every budget and seed at the best rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods import METHODS, RATES, RIVALS, TUNED_AT, Method
from benchmarks.recording import RESULTS, read_result
from jactus_core.tasks import TASKS

FOLDER = RESULTS / "quality"
FIRST_SEED = 0
HOPELESS = 0.03
"""A way to compress and then tune that is this far behind the best one on dev, with the first seed, is not repeated.

Neither with other seeds nor on the experiments that take its learning rates from this one.
"""
FAR_BEHIND = 0.1
"""One that is this far behind where its rate was chosen is not run at other budgets either."""


@dataclass(frozen=True)
class Run:
    """One model to train and to score."""

    experiment: str
    method: str
    budget: float
    rate: float
    seed: int

    @property
    def file(self) -> Path:
        return FOLDER / self.experiment / f"{self.method}-b{self.budget:g}-r{self.rate:g}-s{self.seed}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that its result depends on, but for the code."""
        experiment, method = EXPERIMENTS[self.experiment], METHODS[self.method]
        found = {"rows": experiment.rows, **experiment.settings, **method.settings}
        if found.get("allocation") == "auto":
            found["allocation"] = "measured" if experiment.config(self.seed).measures else "global"
        return found

    def result(self) -> dict[str, Any] | None:
        """What it found, if it was run with these settings."""
        found = read_result(self.file)
        return found if found and found["settings"] == self.settings else None

    def dev_score(self) -> float | None:
        """Higher is better."""
        found, task = self.result(), TASKS[EXPERIMENTS[self.experiment].task]
        return None if found is None else found["dev"][task.metric] * (1 if task.higher_is_better else -1)


def tuned_at(method: Method) -> float:
    return TUNED_AT if TUNED_AT in method.budgets else method.budgets[0]


def tuning_runs(experiment: str, name: str) -> list[Run]:
    """The grid of rates, in order, as far as its scores on dev have led."""
    method = METHODS[name]
    if method.rate is None:
        return [Run(experiment, name, tuned_at(method), 0.0, FIRST_SEED)]
    low = RATES.index(method.rate) - 1
    high = low + 2
    while True:
        runs = [Run(experiment, name, tuned_at(method), rate, FIRST_SEED) for rate in RATES[low : high + 1]]
        winner = _winner(runs)
        if winner is runs[-1] and high + 1 < len(RATES):
            high += 1
        elif winner is runs[0] and low > 0:
            low -= 1
        else:
            return runs


def _winner(runs: Sequence[Run]) -> Run | None:
    """The best on dev, of equals the one with the lowest rate; None as long as one of them is to be run."""
    scores = [score for run in runs if (score := run.dev_score()) is not None]
    return runs[scores.index(max(scores))] if len(scores) == len(runs) else None


def chosen_rate(experiment: str, name: str) -> float | None:
    """The learning rate that is best on dev; None as long as that is not known."""
    winner = _winner(tuning_runs(EXPERIMENTS[experiment].rates_of or experiment, METHODS[name].rate_of or name))
    return winner.rate if winner else None


def is_tuned_here(experiment: str, name: str) -> bool:
    """Whether the rate is not taken from another experiment or method."""
    return EXPERIMENTS[experiment].rates_of is None and METHODS[name].rate_of is None


def final_runs(experiment: str, name: str, seed: int) -> list[Run]:
    """One per budget, that of the choice first, at the chosen rate."""
    rate = chosen_rate(experiment, name)
    if rate is None:
        raise SystemExit(f"The learning rate of {name} on {experiment} is not chosen yet; run what it is taken from.")
    budgets = sorted(METHODS[name].budgets, key=lambda budget: budget != TUNED_AT)
    return [Run(experiment, name, budget, rate, seed) for budget in budgets]


def is_hopeless(run: Run) -> bool:
    """Whether it repeats, or takes to other budgets, a way to compress and then tune that trails far behind another."""
    judged = EXPERIMENTS[run.experiment].rates_of or run.experiment
    if run.method not in RIVALS:
        return False
    if (run.experiment, run.seed) == (judged, FIRST_SEED):
        return run.budget != TUNED_AT and _trails(judged, run.method, TUNED_AT, FAR_BEHIND)
    return _trails(judged, run.method, TUNED_AT, FAR_BEHIND) or _trails(judged, run.method, run.budget, HOPELESS)


def _trails(experiment: str, method: str, budget: float, by: float) -> bool:
    """Whether a way to compress and then tune was run, and is behind the best one, on dev and with the first seed."""
    scores = {}
    for name in RIVALS:
        rate = chosen_rate(experiment, name)
        if rate is not None:
            scores[name] = Run(experiment, name, budget, rate, FIRST_SEED).dev_score()
    known = {name: score for name, score in scores.items() if score is not None}
    return method in known and known[method] < max(known.values()) - by


def missing(name: str, methods: Sequence[str], seed: int) -> Iterator[Run]:
    """What is still to be run for one seed; rates are chosen on the way."""
    experiment = EXPERIMENTS[name]
    for method in methods:
        if METHODS[method].needs_head and not TASKS[experiment.task].is_classification:
            continue
        while seed == FIRST_SEED and is_tuned_here(name, method):
            left = [run for run in tuning_runs(name, method) if run.result() is None]
            if not left:
                break
            yield from left
        for run in final_runs(name, method, seed):
            if run.result() is None and not is_hopeless(run):
                yield run
