"""The published settings run, on tiny random models and on rows with the columns that the hub's datasets have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from benchmarks import runs
from benchmarks.experiments import EXPERIMENTS
from benchmarks.generation import last_number
from benchmarks.methods import METHODS
from benchmarks.paper import PAPER
from benchmarks.quality import run_experiments
from benchmarks.runs import Run
from tests.jactus_core.architectures import architectures

ROWS = 24
WORDS = ["film", "book", "plot", "story", "scene"]


def pictures(column: str = "image", label: str = "label") -> Callable[[int], dict[str, Any]]:
    return lambda row: {column: Image.new("RGB", (32, 32), (200 * (row % 2), 40, 60)), label: ("dawn", "dusk")[row % 2]}


def ask(row: int) -> str:
    return f"{WORDS[row % 5]} {WORDS[row // 5]}"


def options(count: int) -> dict[str, Any]:
    return {"text": WORDS[:count], "label": list("ABCDE"[:count])}


HUB: dict[str, Callable[[int], dict[str, Any]]] = {
    "timm/oxford-iiit-pet": pictures(),
    "tanganke/stanford_cars": pictures(),
    "uoft-cs/cifar10": pictures("img"),
    "tanganke/dtd": pictures(),
    "tanganke/eurosat": pictures(),
    "tanganke/resisc45": pictures(),
    "uoft-cs/cifar100": pictures("img", "fine_label"),
    "Multimodal-Fatima/FGVC_Aircraft_train": pictures(),
    "Multimodal-Fatima/FGVC_Aircraft_test": pictures(),
    "zwhe99/commonsense_170k": lambda row: {
        "instruction": f"choose: {ask(row)} Answer1: film Answer2: book\n\nAnswer format: answer1/answer2",
        "input": "",
        "output": "the correct answer is answer1",
        "answer": f"answer{1 + row % 2}",
    },
    "google/boolq": lambda row: {"question": ask(row), "answer": row % 2 == 0, "passage": ""},
    "ybisk/piqa": lambda row: {"goal": ask(row), "sol1": "film", "sol2": "book", "label": row % 2},
    "allenai/social_i_qa": lambda row: {
        "context": ask(row),
        "question": "why ?",
        "answerA": "film",
        "answerB": "book",
        "answerC": "plot",
        "label": str(1 + row % 3),
    },
    "Rowan/hellaswag": lambda row: {
        "activity_label": "film",
        "ctx": ask(row),
        "endings": WORDS[:4],
        "label": str(row % 4),
    },
    "allenai/winogrande:winogrande_xl": lambda row: {
        "sentence": f"{ask(row)} _",
        "option1": "film",
        "option2": "book",
        "answer": str(1 + row % 2),
    },
    "allenai/ai2_arc:ARC-Easy": lambda row: {"question": ask(row), "choices": options(4), "answerKey": "ABCD"[row % 4]},
    "allenai/ai2_arc:ARC-Challenge": lambda row: {
        "question": ask(row),
        "choices": options(5),
        "answerKey": "ABCDE"[row % 5],
    },
    "allenai/openbookqa:main": lambda row: {
        "question_stem": ask(row),
        "choices": options(4),
        "answerKey": "ABCD"[row % 4],
    },
    "meta-math/MetaMathQA": lambda row: {"query": ask(row), "response": f"{ask(row)} The answer is: {row}"},
    "openai/gsm8k:main": lambda row: {"question": ask(row), "answer": f"{ask(row)} #### {row}"},
}
SPLITS = {
    "zwhe99/commonsense_170k": ["train"],
    "meta-math/MetaMathQA": ["train"],
    "Multimodal-Fatima/FGVC_Aircraft_train": ["train"],
    "Multimodal-Fatima/FGVC_Aircraft_test": ["test"],
}


def load_dataset(name: str, configuration: str | None = None) -> datasets.DatasetDict:
    name = f"{name}:{configuration}" if configuration else name
    rows = datasets.Dataset.from_list([HUB[name](row) for row in range(ROWS)])
    return datasets.DatasetDict(dict.fromkeys(SPLITS.get(name, ["train", "validation", "test"]), rows))


@pytest.mark.parametrize("name", PAPER)
def test_a_published_setting_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = PAPER[name]
    kind = "vit" if experiment.task == "image-classification" else "llama"
    architectures[kind].write(tmp_path / experiment.folder)
    settings = {**experiment.settings, "epochs": 1, "batch_size": 8, "rank_multiple": 1, "warmup_epochs": 1}
    monkeypatch.setitem(EXPERIMENTS, name, replace(experiment, rows=16, settings=settings))
    monkeypatch.setitem(METHODS, "jactus", replace(METHODS["jactus"], budgets=(0.6,)))
    monkeypatch.setattr(runs, "is_tuned_here", lambda *_: False)
    monkeypatch.setattr(runs, "chosen_rate", lambda *_: 1e-3)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(runs, "FOLDER", tmp_path / "results")

    run_experiments([name], argparse.Namespace(models=tmp_path, data=None, methods=["jactus"], seeds=[0]))

    found = Run(name, "jactus", 0.6, 1e-3, 0).result()
    assert found is not None
    scores = found["test"]
    assert 0 <= scores["exact_match" if name == "llama-math" else "accuracy"] <= 1
    assert list(found.get("tests", {})) == sorted(experiment.tests if len(experiment.tests) > 1 else {})


def test_the_answer_of_a_solution_is_its_last_number() -> None:
    assert last_number("He has 3 boxes of 4, so 1,200.00 in all.\n#### 1,200") == "1200"
    assert last_number("The answer is: -7.5.") == "-7.5"
    assert last_number("nothing") == ""
