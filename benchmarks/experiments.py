"""What is measured: a model, a dataset, and how much of both a run takes.

`EXPERIMENTS` fit two CPU cores. `PAPER` are the settings that JACTUS was published with, for a machine with a GPU.
Data come from the hub, or from a folder that holds the files named here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jactus_core.config import CompressionConfig
from jactus_core.examples import Examples, read_examples, split
from jactus_core.sources import Source, open_source
from jactus_core.tasks import TaskName

Row = Mapping[str, Any]
DEV_FRACTION = 0.2
"""Of the training rows, held out where a dataset has no dev split."""


@dataclass(frozen=True)
class Experiment:
    """One dataset on one model. All methods see the same rows in the same order for the same number of steps."""

    task: TaskName
    model: str  # on the hub
    folder: str  # of the model, in a folder of models
    data: str  # on the hub, with the name of the configuration behind a colon
    file: str  # in a folder of data: a zip of images, or a folder with train, test and perhaps dev as JSON lines
    rows: int  # to train on, drawn by the seed
    settings: Mapping[str, Any]  # of CompressionConfig
    scored_rows: tuple[int, int] = (2000, 2000)  # at most, of dev and of test
    hub_columns: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    from_hub: Callable[[Row], Row] | None = None  # makes a row of the hub what the task reads
    rates_of: str | None = None  # the experiment whose learning rates are taken, instead of tuning them here
    seeds: int = 3

    def config(self, seed: int, **changes: Any) -> CompressionConfig:
        return CompressionConfig.model_validate({"task": self.task, "seed": seed, **self.settings, **changes})

    @property
    def steps(self) -> int:
        config = self.config(0)
        return round(config.epochs * self.rows / config.batch_size)


class Splits(NamedTuple):
    """Rows to learn from, to choose by, and to report on."""

    train: Examples
    dev: Examples
    test: Examples


def read_splits(experiment: Experiment, data: Path | None) -> Splits:
    """The dataset from a folder of data, or else from the hub."""
    parts = _from_hub(experiment) if data is None else _from_folder(data / experiment.file)
    columns = experiment.hub_columns if data is None else experiment.columns
    train, test = read_examples(Source(parts["train"], parts["test"]), experiment.task, columns)
    assert test is not None
    if "dev" in parts:
        _, dev = read_examples(Source(parts["train"], parts["dev"]), experiment.task, columns)
        assert dev is not None
    else:
        train, dev = split(train, DEV_FRACTION, seed=0)
    most_dev, most_test = experiment.scored_rows
    return Splits(train, some(dev, most_dev, 0), some(test, most_test, 0))


def _from_folder(path: Path) -> dict[str, Iterable[Any]]:
    if path.is_file():
        source = open_source(path)
        assert source.evaluation is not None
        return {"train": source.train, "test": source.evaluation}
    return {part: open_source(path / f"{part}.jsonl").train for part in _parts(f.stem for f in path.glob("*.jsonl"))}


def _from_hub(experiment: Experiment) -> dict[str, Iterable[Any]]:
    import datasets

    name, _, configuration = experiment.data.partition(":")
    splits = datasets.load_dataset(name, configuration or None)
    if "test" not in splits:
        splits["test"] = splits.pop("validation")
    if "validation" in splits:
        splits["dev"] = splits.pop("validation")
    if experiment.from_hub is not None:
        splits = {part: [experiment.from_hub(row) for row in splits[part]] for part in _parts(splits)}
    return {part: open_source(splits[part]).train for part in _parts(splits)}


def _parts(names: Iterable[str]) -> list[str]:
    return sorted({*names} & {"train", "dev", "test"})


def some(examples: Examples, rows: int, seed: int) -> Examples:
    """At most `rows` of them, drawn by the seed."""
    return examples.select(random.Random(seed).sample(range(len(examples)), min(rows, len(examples))))


MINILM: Mapping[str, Any] = {"model": "sentence-transformers/all-MiniLM-L6-v2", "folder": "minilm"}
VIT_S: Mapping[str, Any] = {"model": "facebook/dinov2-small", "folder": "vit-s"}
CLIP: Mapping[str, Any] = {"model": "openai/clip-vit-base-patch16", "folder": "clip-b16"}
SMOLLM2: Mapping[str, Any] = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "folder": "smollm2"}


def _boolq(row: Row) -> Row:
    return {"question": row["question"], "choices": ["true", "false"], "answer": int(not row["answer"])}


def _arc(row: Row) -> Row:
    choices = row["choices"]
    return {
        "question": row.get("question") or row["question_stem"],
        "choices": choices["text"],
        "answer": choices["label"].index(row["answerKey"]),
    }


TEXT: Mapping[str, Any] = {"task": "text-classification", **MINILM}
IMAGE: Mapping[str, Any] = {"task": "image-classification", **VIT_S}
CHOICE: Mapping[str, Any] = {
    "task": "multiple-choice",
    **SMOLLM2,
    "rows": 960,
    "settings": {"max_length": 64, "batch_size": 16, "epochs": 1, "calibration_samples": 256, "dtype": "bfloat16"},
    "scored_rows": (150, 300),
    "seeds": 1,
}

EXPERIMENTS: dict[str, Experiment] = {
    "sst2": Experiment(
        **TEXT,
        data="SetFit/sst2",
        file="text/sst2",
        rows=4800,
        settings={"max_length": 64, "batch_size": 32, "epochs": 2},
    ),
    "banking77": Experiment(
        **TEXT,
        data="mteb/banking77",
        file="text/banking77",
        rows=8000,
        settings={"max_length": 64, "batch_size": 32, "epochs": 2},
    ),
    "emotion": Experiment(
        **TEXT,
        data="cardiffnlp/tweet_eval:emotion",
        file="text/tweet_emotion",
        rows=3200,
        settings={"max_length": 64, "batch_size": 32, "epochs": 3},
    ),
    "cifar10": Experiment(
        **IMAGE,
        data="uoft-cs/cifar10",
        hub_columns={"image": "img"},
        file="image/cifar10_subset.zip",
        rows=2400,
        scored_rows=(600, 1000),
        settings={"image_size": 98, "batch_size": 32, "epochs": 2, "dtype": "bfloat16"},
    ),
    "dtd10": Experiment(
        **IMAGE,
        data="tanganke/dtd",
        file="image/dtd_10classes.zip",
        rows=640,
        settings={"image_size": 98, "batch_size": 32, "epochs": 7, "dtype": "bfloat16"},
    ),
    "mnist": Experiment(
        **IMAGE,
        data="ylecun/mnist",
        file="image/mnist_subset.zip",
        rows=2400,
        scored_rows=(600, 1000),
        settings={"image_size": 98, "batch_size": 32, "epochs": 2, "dtype": "bfloat16"},
    ),
    "clip-cifar10": Experiment(
        "image-classification",
        **CLIP,
        data="uoft-cs/cifar10",
        hub_columns={"image": "img"},
        file="image/cifar10_subset.zip",
        rows=1600,
        scored_rows=(400, 800),
        settings={
            "image_size": 96,
            "batch_size": 16,
            "epochs": 1,
            "calibration_samples": 256,
            "dtype": "bfloat16",
        },
    ),
    "arc-easy": Experiment(**CHOICE, data="allenai/ai2_arc:ARC-Easy", from_hub=_arc, file="choice/arc_easy"),
    "boolq": Experiment(**CHOICE, data="google/boolq", from_hub=_boolq, file="choice/boolq", rates_of="arc-easy"),
    "commonsense-qa": Experiment(
        **CHOICE, data="tau/commonsense_qa", from_hub=_arc, file="choice/commonsense_qa", rates_of="arc-easy"
    ),
    "openbookqa": Experiment(
        **CHOICE, data="allenai/openbookqa:main", from_hub=_arc, file="choice/openbookqa", rates_of="arc-easy"
    ),
    "gsm8k-text": Experiment(
        **{**CHOICE, "task": "text-generation", "rows": 640, "scored_rows": (100, 300)},
        data="openai/gsm8k:main",
        file="math/gsm8k",
        hub_columns={"prompt": "question", "text": "answer"},
        columns={"prompt": "question", "text": "answer"},
        rates_of="arc-easy",
    ),
}
