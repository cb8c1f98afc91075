"""Time to result, and SVD-LLM's procedure, whose truncation must be the best there is for what the layers read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import costs, recording
from benchmarks.costs import SHARES, fastest, halfway, svd_llm
from jactus_core.factorization import Metric, factorize


def runs_of(method: str, seconds: list[float], dev: list[float], rate: float = 1e-3) -> list[dict[str, Any]]:
    return [
        {"method": method, "share": share, "seed": 3, "rate": rate, "seconds": one, "dev": score}
        for share, one, score in zip(SHARES, seconds, dev, strict=False)
    ]


def test_time_to_result_is_that_of_the_fastest_run_that_reaches_what_both_can() -> None:
    found = runs_of("jactus", [10, 18, 27, 35], [0.70, 0.81, 0.80, 0.85])
    found += runs_of("lora", [9, 19, 29, 39], [0.6, 0.7, 0.79, 0.80])

    assert {method: run["seconds"] for method, run in fastest(found).items()} == {"jactus": 18, "lora": 39}

    found += runs_of("jactus", [11, 12], [0.8, 0.9], 3e-3) + runs_of("lora", [9, 21, 30], [0.0, 0.79, 0.83], 3e-3)

    assert {method: run["seconds"] for method, run in fastest(found).items()} == {"jactus": 11, "lora": 30}


def test_a_run_halfway_to_the_next_shorter_one_tells_whether_that_would_have_done() -> None:
    found = runs_of("jactus", [10, 18, 27, 35], [0.7, 0.81, 0.8, 0.85])
    found += runs_of("lora", [9, 21, 30, 40], [0.0, 0.79, 0.8, 0.8], 3e-3)
    shorter = [
        {"method": "jactus", "share": 0.375, "seed": 3, "rate": 1e-3},
        {"method": "lora", "share": 0.625, "seed": 3, "rate": 3e-3},
    ]

    assert list(halfway(found, 3)) == shorter

    found += [{**one, "seconds": 5, "dev": 0.9} for one in shorter]

    assert list(halfway(found, 3)) == shorter


def test_shorter_schedules_are_run_at_the_next_higher_rate_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "chosen_rate", lambda name, method: {"jactus": 1e-3, "lora": 3e-3}[method])

    asked = list(costs.runs("sst2", 3))

    assert len(asked) == 14
    assert {"method": "lora", "share": 0.25, "seed": 3, "rate": 0.01} in asked
    assert {one["rate"] for one in asked if one["share"] == 1} == {1e-3, 3e-3}


def test_a_figure_is_the_median_over_seeds_of_experiments_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "FOLDER", tmp_path / "costs")
    monkeypatch.setattr(recording, "SUMMARY", tmp_path / "summary.json")
    (tmp_path / "costs").mkdir()
    for name, slower in (("one", 2.0), ("other", 3.0), ("third", 7.0)):
        taken = {"jactus": 10.0 * slower, "lora": 10.0}
        runs = [
            {"method": method, "share": share, "seed": 0, "seconds": seconds, "dev": share, "peak_bytes": seconds}
            for method, seconds in taken.items()
            for share in SHARES
        ]
        preparation = {"ours": [slower], "svd-llm": [1.0]}
        origin = {"commit": f"of {name}", "machine": "two cores", "date": "2026-01-01"}
        found = {"experiment": name, "runs": runs, "preparation": preparation, **origin}
        (tmp_path / "costs" / f"{name}.json").write_text(json.dumps(found))

    costs.conclude()

    rows = {row["id"]: row for row in json.loads((tmp_path / "summary.json").read_text())}
    assert rows.keys() == {"time_vs_lora", "memory_vs_lora", "preparation_vs_svd_llm"}
    for row in rows.values():
        assert (row["value"], row["holds"]) == (3.0, False)
        assert row["metric"].endswith("median over one, other, third")
        assert (row["commit"], row["machine"]) == ("of one, of other, of third", "two cores")
    assert "| third | 0 | 70 s of 100.0% | 10 s of 100.0% | 0.00 GB | 0.00 GB | 7.0 s | 1.0 s |" in costs.table()


def test_svd_llm_truncates_as_well_as_the_closed_form_with_the_inputs_alone() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 9, bias=False)
    x = torch.randn(2, 40, 12) @ torch.randn(12, 12)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 25:] = 0

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.inner(x)
            return y

    up, down = svd_llm({"inner": linear}, Wrapped(), [{"x": x, "attention_mask": mask, "labels": None}])["inner"]

    real = x[mask.bool()]
    weight = linear.weight.detach()
    best = factorize(weight, Metric.of(real.double().T @ real.double(), 1e-12), Metric.identity(9))
    for rank in (1, 4, 8):
        error = real @ (weight - up[:, :rank] @ down[:rank]).T
        torch.testing.assert_close(float(error.square().sum()), best.loss(rank), rtol=1e-3, atol=1e-2)
