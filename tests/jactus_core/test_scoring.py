"""A finished checkpoint scores what its compression said, whoever asks and however the classes are numbered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jactus_core import compress, score
from jactus_core.compression import CompressionResult
from jactus_core.config import CompressionConfig
from jactus_core.errors import ModelNotFound, UnknownLabel
from jactus_core.examples import Examples, read_examples, split
from tests.helpers import QUICK
from tests.jactus_core.architectures import Compressed, rows_for
from tests.tiny import reviews

HELD_OUT = reviews(40)[20:]


@pytest.fixture(scope="module")
def made(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressionResult:
    config = CompressionConfig(**QUICK.model_dump(), budgets=(0.5,))
    return compress(str(tiny_bert), reviews(60), tmp_path_factory.mktemp("made"), config, eval_data=HELD_OUT)


def test_the_metrics_are_those_of_the_compression(made: CompressionResult) -> None:
    [point] = made.budgets
    assert score(point.folder, HELD_OUT) == pytest.approx(point.metrics, rel=1e-5)
    assert score(point.folder, {"train": reviews(60), "test": HELD_OUT}) == pytest.approx(point.metrics, rel=1e-5)


@pytest.mark.parametrize("name", ["vit", "llama", "mistral"])
def test_every_task_is_scored_as_it_was(name: str, compressed: Callable[[str], Compressed]) -> None:
    found = compressed(name)
    rows = rows_for(found.architecture.task)
    examples, _ = read_examples(rows, found.architecture.task)
    numbered = Examples(examples.task, list(range(len(rows))), examples.labels, examples.label_names)
    config = CompressionConfig()
    _, held_out = split(numbered, config.eval_fraction, config.seed)

    assert score(found.folder, [rows[number] for number in held_out.items]) == pytest.approx(
        found.point.metrics, rel=1e-4
    )


def test_classes_are_known_by_name(made: CompressionResult) -> None:
    """Rows in which the first class of the alphabet is missing have other numbers for the same names."""
    folder = made.budgets[0].folder
    swapped = {"good": "bad", "bad": "good"}
    upside_down = [{**row, "label": swapped[row["label"]]} for row in HELD_OUT]
    right = score(folder, HELD_OUT)["accuracy"]
    assert score(folder, upside_down)["accuracy"] == pytest.approx(1 - right)
    with pytest.raises(UnknownLabel, match="no class 'fair'; it has bad, good"):
        score(folder, [*HELD_OUT, {"text": "a film", "label": "fair"}])


def test_columns_may_be_named_and_progress_is_told(made: CompressionResult) -> None:
    told: list[float] = []
    rows = [{"sentence": row["text"], "stars": row["label"]} for row in HELD_OUT]
    found = score(
        made.budgets[0].folder, rows, columns={"text": "sentence", "label": "stars"}, batch_size=5, report=told.append
    )
    assert found == pytest.approx(made.budgets[0].metrics, rel=1e-5)
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_a_folder_that_is_no_checkpoint_of_ours_is_refused(tiny_bert: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no report\.json"):
        score(tiny_bert, HELD_OUT)
