"""The comparison with the peers: every method runs, nothing is run twice, choices look at dev alone."""

from __future__ import annotations

import argparse
import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import findings, quality, runs, short
from benchmarks.experiment import Experiment
from benchmarks.experiments import EXPERIMENTS
from benchmarks.findings import Column
from benchmarks.methods import METHODS, TUNED_AT
from benchmarks.quality import run_experiments
from benchmarks.runs import FAR_BEHIND, HOPELESS, Run, chosen_rate, final_runs, is_hopeless, missing, tuning_runs
from benchmarks.trial import Trial
from tests.tiny import reviews, write_tiny_bert

RIVALS = ("svd-llm+lora", "svd-llm+cores")
TINY = Experiment(
    "text-classification",
    model="",
    data="",
    rows=32,
    folder="bert",
    file="reviews",
    settings={"batch_size": 16, "epochs": 1, "calibration_samples": 16, "rank_multiple": 1, "dtype": "bfloat16"},
    seeds=2,
)


@pytest.fixture(autouse=True)
def _results_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FOLDER", tmp_path / "results")
    monkeypatch.setitem(EXPERIMENTS, "tiny", TINY)


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    write_tiny_bert(tmp_path / "bert")
    folder = tmp_path / "reviews"
    folder.mkdir()
    rows = [json.dumps(row) + "\n" for row in reviews(100)]
    (folder / "train.jsonl").write_text("".join(rows[:60]))
    (folder / "test.jsonl").write_text("".join(rows[60:]))
    return argparse.Namespace(models=tmp_path, data=tmp_path, methods=list(METHODS), seeds=[0, 1, 2])


def pretend(run: Run, dev: float, test: float) -> None:
    content = {"dev": {"accuracy": dev}, "test": {"accuracy": test}, "settings": run.settings}
    run.file.parent.mkdir(parents=True, exist_ok=True)
    run.file.write_text(json.dumps(content))


def test_every_method_is_run_once_for_every_budget_and_seed(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_experiments(["tiny"], options)

    for name, method in METHODS.items():
        for budget in method.budgets:
            assert findings.is_complete("tiny", Column(name, budget)), name
    assert set(findings.scores("tiny", Column("lora", 1.0))) == {0, 1}
    sizes = [findings.results("tiny", Column("jactus", budget))[0]["parameters"] for budget in (0.8, 0.6, 0.4)]
    dense = findings.results("tiny", Column("lora", 1.0))[0]["parameters"]
    assert dense > sizes[0] > sizes[1] > sizes[2]

    monkeypatch.setattr(quality, "measure", lambda run, trial: pytest.fail(f"{run} is run again"))
    run_experiments(["tiny"], options)


def test_a_trial_of_one_method_holds_nothing_that_its_training_does_not_need(options: argparse.Namespace) -> None:
    trials = [Trial(TINY, 0, options.models, options.data, once=once) for once in (True, False)]
    config = trials[0].config
    calibrated = [weakref.ref(next(iter(trial.statistics(config).values()))) for trial in trials]

    models = [trial.compressed(config)[0] for trial in trials]

    gc.collect()
    assert [seen() is None for seen in calibrated] == [True, False]
    scores = [trial.dev_score(model) for trial, model in zip(trials, models, strict=True)]
    assert scores[0] == scores[1]


def test_a_result_of_other_settings_is_run_again() -> None:
    run = Run("tiny", "lora", 1.0, 1e-3, 0)
    pretend(run, 0.5, 0.5)
    assert run.result() is not None

    stale = json.loads(run.file.read_text())
    stale["settings"]["rows"] += 1
    run.file.write_text(json.dumps(stale))
    assert run.result() is None


def test_the_rate_is_chosen_on_dev_and_the_lowest_of_equals() -> None:
    for rate, dev, test in ((3e-4, 0.7, 0.9), (1e-3, 0.8, 0.1), (3e-3, 0.8, 0.95)):
        assert chosen_rate("tiny", "lora") is None
        pretend(Run("tiny", "lora", 1.0, rate, 0), dev, test)

    assert chosen_rate("tiny", "lora") == 1e-3
    assert final_runs("tiny", "lora", seed=1) == [Run("tiny", "lora", 1.0, 1e-3, 1)]


def test_the_grid_moves_on_while_the_best_is_at_its_edge() -> None:
    for rate, dev in ((3e-4, 0.6), (1e-3, 0.7), (3e-3, 0.8), (1e-2, 0.9), (3e-2, 0.5)):
        assert chosen_rate("tiny", "lora") is None
        pretend(Run("tiny", "lora", 1.0, rate, 0), dev, dev)

    assert chosen_rate("tiny", "lora") == 1e-2
    assert [run.rate for run in tuning_runs("tiny", "lora")] == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]


def test_without_a_rate_nothing_is_guessed() -> None:
    with pytest.raises(SystemExit, match=r"svd\+lora on tiny"):
        final_runs("tiny", "svd+lora", seed=0)


def test_a_rival_that_trails_far_behind_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPERIMENTS, "like tiny", replace(TINY, rates_of="tiny", seeds=1))
    for name, dev in zip(RIVALS, (0.8, 0.8 - HOPELESS - 0.01), strict=True):
        for rate, loss in ((3e-4, 0.1), (1e-3, 0.0), (3e-3, 0.1)):
            for budget in METHODS[name].budgets:
                pretend(Run("tiny", name, budget, rate, 0), dev - loss, dev)

    for repeated in missing("tiny", RIVALS, seed=1), missing("like tiny", RIVALS, seed=0):
        assert [run.method for run in repeated] == ["svd-llm+lora"] * 3
    assert not any(is_hopeless(run) for run in final_runs("tiny", "svd-llm+cores", seed=0))


def test_a_rival_that_trails_by_very_much_is_not_run_at_other_budgets() -> None:
    for name, dev in zip(RIVALS, (0.8, 0.8 - FAR_BEHIND - 0.01), strict=True):
        for rate, loss in ((3e-4, 0.1), (1e-3, 0.0), (3e-3, 0.1)):
            pretend(Run("tiny", name, TUNED_AT, rate, 0), dev - loss, dev)

    left = list(missing("tiny", RIVALS, seed=0))
    assert [(run.method, run.budget) for run in left] == [("svd-llm+lora", 0.8), ("svd-llm+lora", 0.4)]
    assert [run.method for run in missing("tiny", RIVALS, seed=1)] == ["svd-llm+lora"] * 3
    assert not findings.is_complete("tiny", Column("svd-llm+lora", 0.8))
    assert findings.is_complete("tiny", Column("svd-llm+cores", TUNED_AT))


def test_differences_are_paired_by_seed_and_every_experiment_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[tuple[str, str], dict[int, float]] = {
        ("a", "jactus"): {0: 0.9, 1: 0.7, 2: 0.8},
        ("a", "lora"): {0: 0.8, 1: 0.6, 2: 0.7},
        ("b", "jactus"): {0: 0.5},
        ("b", "lora"): {0: 0.8},
    }
    monkeypatch.setattr(findings, "scores", lambda name, column: values[name, column.method])

    found = findings.difference(["a", "b"], Column("jactus", 0.8), Column("lora", 1.0))

    assert found.by_experiment["a"] == pytest.approx([0.1, 0.1, 0.1])
    assert found.mean == pytest.approx((0.1 - 0.3) / 2)
    assert found.error == pytest.approx(0.2)
    assert findings.best(["a", "b"], [Column("jactus", 0.8), Column("lora", 1.0)]) == Column("lora", 1.0)


def test_what_is_left_out_somewhere_is_not_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {("a", "svd+lora"): {0: 0.9}, ("b", "svd+lora"): {}, ("a", "lora"): {0: 0.5}, ("b", "lora"): {0: 0.5}}
    monkeypatch.setattr(findings, "scores", lambda name, column: values[name, column.method])

    assert findings.best(["a", "b"], [Column("svd+lora", 0.8), Column("lora", 1.0)]) == Column("lora", 1.0)
    assert findings.best(["a"], [Column("svd+lora", 0.8), Column("lora", 1.0)]) == Column("svd+lora", 0.8)


def committed() -> list[tuple[Path, dict[str, Any]]]:
    folder = Path(quality.__file__).parent / "results" / "quality"
    return [(file, json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.rglob("*.json"))]


def test_committed_results_say_where_they_come_from() -> None:
    for file, found in committed():
        run = Run(found["experiment"], found["method"], found["budget"], found["learning_rate"], found["seed"])
        assert (file.parent.name, file.name) == (run.experiment, run.file.name)
        assert found["settings"] == run.settings, f"{file} was measured with other settings: measure it again"
        assert {"machine", "versions", "commit", "date", "seconds", "parameters"} <= found.keys()
        assert "dirty" not in found["commit"]


def test_the_short_form_prints_a_line_per_method(
    options: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    short.run("tiny", short.shortened(TINY, 16), options.models, options.data)

    lines = capsys.readouterr().out.splitlines()
    assert "16 rows" in lines[1]
    assert [line[:12].split()[0] for line in lines[3:]] == [
        "untouched",
        "LoRA",
        "JACTUS",
        "JACTUS",
        "SVD-LLM,",
        "SVD-LLM,",
    ]
