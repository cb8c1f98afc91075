"""Speed of checkpoints: the same models on every engine, and one figure per engine, batch and budget."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import inference, recording
from benchmarks.inference import BATCHES, DENSE, ENGINES, MULTIPLES, place, variant
from benchmarks.methods import BUDGETS
from benchmarks.trial import Trial
from jactus_core.losses import without_labels
from tests.benchmarks.test_quality import TINY
from tests.tiny import reviews, write_tiny_bert


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Of a tiny model, of which three checkpoints are made."""
    write_tiny_bert(tmp_path / "bert")
    (tmp_path / "reviews").mkdir()
    for part in ("train", "test"):
        (tmp_path / "reviews" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews()))
    monkeypatch.setattr(inference, "BUDGETS", (0.6,))
    monkeypatch.setattr(inference, "MULTIPLES", (1, 8))
    settings = {**TINY.settings, "warmup_epochs": 1, "dtype": "float32"}
    return Trial(replace(TINY, settings=settings), 0, tmp_path, tmp_path)


def test_checkpoints_answer_alike_on_every_engine(trial: Trial, tmp_path: Path) -> None:
    models = inference.write_models(trial, tmp_path / "models")

    assert list(models) == [DENSE, variant(0.6, 1), variant(0.6, 8)]
    batch = without_labels(trial.dev.batch(range(4)))
    for folder in models.values():
        eager = ENGINES["eager"](folder, batch)().logits
        other = torch.from_numpy(ENGINES["ONNX Runtime"](folder, batch)()[0])
        torch.testing.assert_close(eager, other, rtol=1e-3, atol=1e-4)


def test_what_was_measured_is_not_measured_again(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "FOLDER", tmp_path / "inference")
    monkeypatch.setattr(inference, "small_trial", lambda *_: trial)
    options = Namespace(models=None, data=None, engines=["eager"], repeats=1)
    told = [f"tiny: {place('eager', size)}" for size in BATCHES]

    inference.measure("tiny", options)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny")] == told

    file = tmp_path / "inference" / "tiny.json"
    found = json.loads(file.read_text())
    del found["milliseconds"][place("eager", 1)]
    file.write_text(json.dumps(found))
    inference.measure("tiny", options)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny")] == told[1:]

    monkeypatch.delattr(inference, "write_models")
    inference.measure("tiny", options)
    assert json.loads(file.read_text())["milliseconds"].keys() == {place("eager", size) for size in BATCHES}


def test_a_figure_is_the_mean_over_experiments_of_the_median_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "FOLDER", tmp_path / "inference")
    monkeypatch.setattr(recording, "SUMMARY", tmp_path / "summary.json")
    (tmp_path / "inference").mkdir()
    for name, slower in (("a", 1.0), ("b", 2.0)):
        slow = [5.0 * slower, 50.0 * slower, 4.0 * slower]
        times = {variant(budget, multiple): slow for budget in BUDGETS for multiple in MULTIPLES}
        measured = {f"eager, batch {size}": {DENSE: [10.0, 100.0, 8.0], **times} for size in BATCHES}
        origin = {"commit": f"of {name}", "machine": "two cores", "date": "2026-01-01"}
        found = {"experiment": name, "milliseconds": measured, **origin}
        (tmp_path / "inference" / f"{name}.json").write_text(json.dumps(found))

    inference.conclude()

    rows = {row["id"]: row["value"] for row in json.loads((tmp_path / "summary.json").read_text())}
    assert rows.keys() == {f"inference_batch{size}@{budget:g}/eager" for size in BATCHES for budget in BUDGETS}
    assert set(rows.values()) == {0.75}
    assert "| eager | 32 | 8 | 10 ms | 0.50 / 0.50 / 0.50 | 10 ms | 1.00 / 1.00 / 1.00 |" in inference.table()
    assert "| torch.compile | 1 | 64 |  |  |  |  |" in inference.table()
