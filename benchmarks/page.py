"""docs/benchmarks.md: every table and the picture from the committed results, and the figures of the summary.

python -m benchmarks.page
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks import costs, findings, inference
from benchmarks.experiments import SMALL
from benchmarks.findings import ADAPTERS, OURS, Column, best, complete, difference
from benchmarks.methods import BUDGETS, METHODS, RIVALS
from benchmarks.recording import DOCS, README, fill, markdown, read_summary, summarize
from benchmarks.runs import chosen_rate, tuning_runs
from jactus_core.tasks import TaskName

PAGE = DOCS / "benchmarks.md"
PICTURE = DOCS / "benchmarks.svg"
COMMAND = "python -m benchmarks.quality && python -m benchmarks.page"
PEFT_BOUND = 0.5
"""Points that JACTUS at the largest budget shall be ahead of the best adapter at all parameters."""
RIVAL_BOUNDS = {0.8: 1.0, 0.6: 2.0, 0.4: 3.0}
"""Points that it shall be ahead of the best way to compress and then tune, by budget."""
COLUMNS = [Column(name, budget) for name, method in METHODS.items() for budget in method.budgets]
MODALITIES: Mapping[str, tuple[TaskName, ...]] = {
    "text": ("text-classification",),
    "images": ("image-classification",),
    "language": ("multiple-choice",),
}
INK, GRID = "#1f2933", "#d9e2ec"
STYLES: Mapping[str, Mapping[str, Any]] = {
    OURS: {"color": "#0b6e4f", "marker": "o", "linewidth": 2.2},
    "svd-llm+lora": {"color": "#c2410c", "marker": "s"},
    "svd-llm+cores": {"color": "#c2410c", "marker": "s", "linestyle": "--"},
    "svd-llm-global+lora": {"color": "#7c3aed", "marker": "^"},
    "svd-llm-global+cores": {"color": "#7c3aed", "marker": "^", "linestyle": "--"},
    "svd+lora": {"color": "#64748b", "marker": "v"},
    "svd+cores": {"color": "#64748b", "marker": "v", "linestyle": "--"},
    "lora": {"color": "#1d4ed8", "marker": "D"},
    "dora": {"color": "#0891b2", "marker": "P"},
    "pissa": {"color": "#be185d", "marker": "X"},
    "full": {"color": INK, "marker": "*"},
    "probe": {"color": "#a3a3a3", "marker": "_"},
}


def main() -> None:
    summarize_quality()
    for marker, text in blocks().items():
        fill(PAGE, marker, text)
    fill(README, "quality", headline())
    draw(points())


def summarize_quality() -> None:
    """The goals in the summary of all benchmarks, over the experiments that have all of both sides."""
    for id, (found, ours, against, bound) in quality_goals().items():
        over = ", ".join(found.by_experiment)
        metric = f"JACTUS - {METHODS[against.method].title}, points over {over}"
        value = 100 * found.mean
        used = [
            result
            for name in found.by_experiment
            for column in (ours, against)
            for result in findings.results(name, column).values()
        ]
        summarize(id, metric, value, f">= {bound:g}", value >= bound, COMMAND, used)


def quality_goals() -> dict[str, tuple[findings.Difference, Column, Column, float]]:
    """By id: the difference to the best of the peers, ours, which one theirs is, and the points asked for."""
    adapters = [Column(name, 1.0) for name in ADAPTERS]
    goals = {"quality_vs_peft@0.8": (Column(OURS, 0.8), adapters, PEFT_BOUND)}
    for budget, bound in RIVAL_BOUNDS.items():
        rivals = [Column(name, budget) for name in RIVALS]
        goals[f"quality_vs_compress_then_tune@{budget:g}"] = (Column(OURS, budget), rivals, bound)
    found = {}
    for id, (ours, peers, bound) in goals.items():
        experiments = complete([ours, *peers])
        if experiments:
            against = best(experiments, peers)
            found[id] = difference(experiments, ours, against), ours, against, bound
    return found


def blocks() -> dict[str, str]:
    """What stands between the markers of the page."""
    return {
        "goals": goals_table(),
        **{modality: scores_table(names) for modality, names in shown().items()},
        "perplexity": scores_table([name for name in SMALL if findings.metric_of(name) == "perplexity"]),
        "differences": differences_table(),
        "rates": rates_table(),
        "costs": costs.table(),
        "inference": inference.table(),
    }


def shown() -> dict[str, list[str]]:
    """Experiments with an accuracy, by modality."""
    return {
        modality: [name for name, experiment in SMALL.items() if experiment.task in tasks]
        for modality, tasks in MODALITIES.items()
    }


def goals_table() -> str:
    rows = [row for row in read_summary() if str(row["command"]).startswith(GOALS)]
    return markdown(
        ["goal", "value", "bound", "holds", "what"],
        (
            [f"`{r['id']}`", f"{r['value']:.2f}", r["bound"], "yes" if r["holds"] else "**no**", r["metric"]]
            for r in rows
        ),
    )


GOALS = ("python -m benchmarks.quality", "python -m benchmarks.costs", "python -m benchmarks.inference")


def scores_table(experiments: Sequence[str]) -> str:
    """Mean ± standard deviation over seeds, on test; accuracies in percent."""
    head = ["method", "kept", *(f"{name} ({len_of_seeds(name)})" for name in experiments)]
    rows = []
    for column in COLUMNS:
        cells = [findings.cell(name, findings.scores(name, column)) for name in experiments]
        if any(cells):
            rows.append([METHODS[column.method].title, f"{column.budget:.0%}", *cells])
    return markdown(head, rows)


def len_of_seeds(experiment: str) -> str:
    seeds = SMALL[experiment].seeds
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def differences_table() -> str:
    """Points of JACTUS minus the best peer of each goal, by experiment, paired by seed."""
    goals = quality_goals()
    experiments = [name for name in SMALL if any(name in found.by_experiment for found, *_ in goals.values())]
    rows = []
    for id, (found, _, against, _) in goals.items():
        cells = [_points(found.by_experiment.get(name, ())) for name in experiments]
        rows.append([f"`{id}`", METHODS[against.method].title, *cells, _over_all(found)])
    return markdown(["goal", "against", *experiments, "mean ± error"], rows)


def headline() -> str:
    """The same over all experiments, for who reads no further."""
    rows = [
        [f"{ours.budget:.0%}", METHODS[against.method].title, f"{against.budget:.0%}", _over_all(found)]
        for found, ours, against, _ in quality_goals().values()
    ]
    return markdown(["JACTUS keeps", "beside", "which keeps", "points ahead"], rows)


def _over_all(found: findings.Difference) -> str:
    error = f" ± {100 * found.error:.2f}" if len(found.by_experiment) > 1 else ""
    return f"{100 * found.mean:+.2f}{error}"


def _points(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):+.1f}{spread}"


def rates_table() -> str:
    """What dev chose, in **bold**, and the grid it was chosen from."""
    tuned = [name for name, experiment in SMALL.items() if experiment.rates_of is None]
    names = [name for name, method in METHODS.items() if method.rate is not None and method.rate_of is None]
    rows = [[METHODS[name].title, *(_grid(experiment, name) for experiment in tuned)] for name in names]
    return markdown(["method", *tuned], rows)


def _grid(experiment: str, name: str) -> str:
    chosen = chosen_rate(experiment, name)
    rates = [run.rate for run in tuning_runs(experiment, name)]
    return " ".join(f"**{rate:g}**" if rate == chosen else f"{rate:g}" for rate in rates) if chosen else ""


Points = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]


def points() -> Points:
    """By modality and method: the share kept and the mean accuracy, over experiments that have all that is drawn.

    As many experiments times columns as there are results for: one experiment that is ahead of the others does not
    displace them. A modality is drawn as soon as there is something to compare.
    """
    drawn = {}
    for modality, names in shown().items():
        subsets = [subset for count in range(1, len(names) + 1) for subset in combinations(names, count)]
        whole, columns = max(
            ((subset, drawable(subset)) for subset in subsets), key=lambda found: len(found[0]) * len(found[1])
        )
        methods = dict.fromkeys(column.method for column in columns)
        if len(methods) > 1:
            drawn[modality] = {
                method: [(c.budget, round(findings.mean(whole, c), 5)) for c in columns if c.method == method]
                for method in methods
            }
    return drawn


def drawable(experiments: Sequence[str]) -> list[Column]:
    """What is complete for all of them; not a hopeless one, which has no scores in some."""
    return [
        column
        for column in COLUMNS
        if column.method in STYLES
        and all(findings.is_complete(name, column) for name in experiments)
        and findings.is_everywhere(experiments, column)
    ]


def draw(panels: Points, file: Path = PICTURE) -> None:
    """Accuracy against the share of the linear layers that is kept, one panel per modality; an empty one for none."""
    with rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.family": "sans-serif"}):
        count = max(len(panels), 1)
        figure = Figure(figsize=(4.4 * count, 4.6), layout="constrained")
        for axes, (modality, methods) in zip(figure.subplots(1, count, squeeze=False)[0], panels.items(), strict=False):
            for method, line in methods.items():
                kept, accuracy = zip(*line, strict=True)
                axes.plot(kept, [100 * value for value in accuracy], label=METHODS[method].title, **STYLES[method])
            axes.set_title(modality, loc="left", color=INK)
            axes.set_xlabel("parameters kept of the linear layers")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axes.set_xticks([1.0, *BUDGETS])
            axes.grid(color=GRID)
            axes.set_axisbelow(True)
        figure.axes[0].set_ylabel("mean accuracy on test, percent")
        lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        handles = [lines[method.title] for method in METHODS.values() if method.title in lines]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        figure.savefig(file, metadata={"Date": None, "Description": fingerprint(panels)})


def fingerprint(panels: Points) -> str:
    """What the picture carries, to tell which results it shows."""
    return hashlib.sha256(json.dumps(panels, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    main()
