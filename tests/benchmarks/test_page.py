"""docs/benchmarks.md says what the committed results say."""

from __future__ import annotations

import pytest

from benchmarks import ablation, findings, page, real_models
from benchmarks.findings import Column
from benchmarks.recording import DEPLOY_PAGE, METHOD_PAGE, README, RESULTS, filled, kept, read_result, read_summary


@pytest.mark.parametrize("marker", page.blocks())
def test_a_table_of_the_page_is_that_of_the_results(marker: str) -> None:
    assert filled(page.PAGE, marker) == page.blocks()[marker], "run python -m benchmarks.page"


def test_the_readme_says_what_the_results_say() -> None:
    assert filled(README, "quality") == page.headline(), "run python -m benchmarks.page"


def test_the_picture_is_that_of_the_results() -> None:
    assert page.fingerprint(page.points()) in page.PICTURE.read_text(encoding="utf-8"), "run python -m benchmarks.page"


def test_what_real_models_gave_and_took_is_what_was_measured() -> None:
    found = kept("real_models", "cases")
    assert filled(METHOD_PAGE, "real-models") == real_models.table(found), "run python -m benchmarks.real_models"
    assert filled(DEPLOY_PAGE, "sizing") == real_models.sizing(found), "run python -m benchmarks.real_models"


def test_what_each_switch_does_is_what_was_measured() -> None:
    found = read_result(RESULTS / "ablation.json")
    assert found is not None
    assert filled(METHOD_PAGE, "ablation") == ablation.text(found["scores"], found["budget"])


def test_the_goals_of_the_summary_are_those_of_the_results() -> None:
    values = {row["id"]: row["value"] for row in read_summary()}

    for id, (found, *_) in page.quality_goals().items():
        assert values[id] == pytest.approx(100 * found.mean, abs=1e-4), "run python -m benchmarks.page"


def test_an_empty_cell_is_left_empty_and_a_single_seed_has_no_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {Column("lora", 1.0): {0: 0.9}, Column("jactus", 0.8): {0: 0.8, 1: 0.9}}
    monkeypatch.setattr(findings, "scores", lambda name, column: known.get(column, {}))

    lines = page.scores_table(["sst2"]).splitlines()

    assert lines[2:] == ["| JACTUS | 80% | 85.0 ± 7.1 |", "| LoRA r=16 | 100% | 90.0 |"]


def test_an_experiment_that_is_ahead_of_the_others_does_not_displace_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, lora, full = Column("jactus", 0.8), Column("lora", 1.0), Column("full", 1.0)
    known = {"sst2": (ours, lora, full), "banking77": (ours, lora), "emotion": (ours, lora)}
    monkeypatch.setattr(findings, "is_complete", lambda name, column: column in known.get(name, ()))
    monkeypatch.setattr(findings, "scores", lambda name, column: {0: {"sst2": 0.9}.get(name, 0.6)})

    assert page.points() == {"text": {"jactus": [(0.8, 0.7)], "lora": [(1.0, 0.7)]}}

    known["banking77"] = known["emotion"] = known["sst2"]
    assert page.points()["text"].keys() == {"jactus", "lora", "full"}
