"""What an experiment is: a model, a dataset, how much of both a run takes, and how its rows are read."""

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


class Test(NamedTuple):
    """Rows to report on from a dataset of their own."""

    data: str  # on the hub, with the name of the configuration behind a colon
    split: str
    from_hub: Callable[[Row], Row] | None = None


@dataclass(frozen=True)
class Experiment:
    """One dataset on one model. All methods see the same rows in the same order for the same number of steps."""

    task: TaskName
    model: str  # on the hub
    data: str  # on the hub, with the name of the configuration behind a colon
    rows: int  # to train on, drawn by the seed
    settings: Mapping[str, Any]  # of CompressionConfig
    folder: str = ""  # of the model, in a folder of models
    file: str = ""  # in a folder of data: a zip of images, or a folder with train, test and perhaps dev as JSON lines
    scored_rows: tuple[int, int] = (2000, 2000)  # at most, of dev and of test
    hub_columns: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    from_hub: Callable[[Row], Row] | None = None  # makes a row of the hub what the task reads
    tests: Mapping[str, Test] = field(default_factory=dict)  # on the hub; none: the dataset's own test split
    answer_of: Callable[[str], str] | None = None  # what counts of a text that the model writes
    rates_of: str | None = None  # the experiment whose learning rates are taken, instead of tuning them here
    seeds: int = 3

    def config(self, seed: int) -> CompressionConfig:
        return CompressionConfig.model_validate({"task": self.task, "seed": seed, **self.settings})


class Splits(NamedTuple):
    """Rows to learn from, to choose by, and to report on by name."""

    train: Examples
    dev: Examples
    tests: Mapping[str, Examples]


def read_splits(experiment: Experiment, data: Path | None) -> Splits:
    """The dataset from a folder of data, or else from the hub."""
    parts = _from_hub(experiment) if data is None else _from_folder(data / experiment.file)
    columns = experiment.hub_columns if data is None else experiment.columns
    most_dev, most_test = experiment.scored_rows

    def read(part: str) -> Examples:
        _, found = read_examples(Source(parts["train"], parts[part]), experiment.task, columns)
        assert found is not None
        return found

    train, _ = read_examples(Source(parts["train"]), experiment.task, columns)
    train, dev = (train, read("dev")) if "dev" in parts else split(train, DEV_FRACTION, seed=0)
    tests = {part: some(read(part), most_test, 0) for part in sorted(parts.keys() - {"train", "dev"})}
    return Splits(train, some(dev, most_dev, 0), tests)


def _from_folder(path: Path) -> dict[str, Iterable[Any]]:
    """Rows by part: train, dev where there is one, and tests."""
    if path.is_file():
        source = open_source(path)
        assert source.evaluation is not None
        return {"train": source.train, "test": source.evaluation}
    return {file.stem: open_source(file).train for file in path.glob("*.jsonl")}


def _from_hub(experiment: Experiment) -> dict[str, Iterable[Any]]:
    splits = _load(experiment.data)
    if not experiment.tests and "test" not in splits:
        splits["test"] = splits.pop("validation")
    names = {"train": "train", "validation": "dev"} | ({} if experiment.tests else {"test": "test"})
    found = {part: _rows(splits[name], experiment.from_hub) for name, part in names.items() if name in splits}
    for name, test in experiment.tests.items():
        found[name] = _rows(_load(test.data)[test.split], test.from_hub)
    return found


def _load(name: str) -> dict[str, Any]:
    import datasets

    path, _, configuration = name.partition(":")
    return dict(datasets.load_dataset(path, configuration or None))


def _rows(rows: Any, change: Callable[[Row], Row] | None) -> Iterable[Any]:
    return open_source([change(row) for row in rows] if change else rows).train


def some(examples: Examples, rows: int, seed: int) -> Examples:
    """At most `rows` of them, drawn by the seed."""
    return examples.select(random.Random(seed).sample(range(len(examples)), min(rows, len(examples))))
