"""One seed of one dataset, prepared once, to measure many variants of a compression on.

A trial holds the dense model with its head tuned, the statistics of its calibration, and rows to train and to score on.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from jactus_core.allocation import LayerSpectrum, allocate
from jactus_core.calibration import LayerStatistics, calibrate, find_readers
from jactus_core.checkpoint import deploy
from jactus_core.config import CompressionConfig
from jactus_core.decomposition import factorized
from jactus_core.encoding import Encoded, encode
from jactus_core.evaluation import evaluate
from jactus_core.examples import Examples, read_examples
from jactus_core.factorization import Factorization
from jactus_core.finetuning import finetune_cores, warm_up_head
from jactus_core.layers import find_targets, install_cores
from jactus_core.loading import Loaded, load_model
from jactus_core.models import find_model
from jactus_core.sources import Source, open_source
from jactus_core.tasks import TaskName

Ranks = dict[str, int | None]


@dataclass(frozen=True)
class Set:
    """A dataset, the model it is for, and how much of both a trial can afford."""

    task: TaskName
    model: str
    train: str
    evaluation: str | None  # None: the archive has both splits
    rows: int  # to train on
    eval_rows: int
    settings: Mapping[str, Any]


SETS: Mapping[str, Set] = {
    "sst2": Set(
        "text-classification", "minilm", "text/sst2/train.jsonl", "text/sst2/test.jsonl", 1280, 600, {"max_length": 48}
    ),
    "emotion": Set(
        "text-classification",
        "minilm",
        "text/tweet_emotion/train.jsonl",
        "text/tweet_emotion/test.jsonl",
        1280,
        600,
        {"max_length": 48},
    ),
    "dtd": Set("image-classification", "vit-s", "image/dtd_10classes.zip", None, 480, 300, {"image_size": 98}),
}


class Trial:
    """Compress one model in many ways; nothing that a variant does is seen by the next."""

    def __init__(self, set_: Set, models: Path, data: Path, seed: int, budget: float) -> None:
        fixed = {"task": set_.task, "seed": seed, "epochs": 1, "budgets": (budget,), "rank_multiple": 1}
        self.config = config = CompressionConfig.model_validate({**fixed, **set_.settings})
        source = open_source(data / set_.train)
        if set_.evaluation:
            source = Source(source.train, open_source(data / set_.evaluation).train)
        train, held_out = read_examples(source, set_.task)
        assert held_out is not None
        transformers.set_seed(config.seed)
        self.loaded: Loaded = load_model(find_model(str(models / set_.model)), train.label_names, config)
        self.train: Encoded = encode(_some(train, set_.rows, config.seed), self.loaded, config)
        self.held_out: Encoded = encode(_some(held_out, set_.eval_rows, 0), self.loaded, config, scoring=True)
        warm_up_head(self.loaded, self.train, config, lambda done: None)
        self._statistics: dict[tuple[str, int], dict[str, LayerStatistics]] = {}

    @cached_property
    def dense(self) -> float:
        """Accuracy before anything is compressed."""
        return self.accuracy(self.loaded.model)

    @cached_property
    def groups(self) -> list[list[str]]:
        """Layers that read the same tensors, in the dense model and in any that a lever makes of it."""
        layers = find_targets(self.loaded.model, self.loaded.body, self.loaded.head).layers
        return find_readers(self.loaded.model, layers, self.batches(self.config)[0])

    def batches(self, config: CompressionConfig) -> list[dict[str, Any]]:
        """The calibration rows."""
        few = self.train.sample(config.calibration_samples, config.seed)
        return [few.batch(rows) for rows in few.batch_rows(config.batch_size, config.seed)]

    def statistics(self, config: CompressionConfig) -> dict[str, LayerStatistics]:
        """Of the dense model, from one calibration for all variants that do not change it."""
        key = config.fisher, config.calibration_samples
        if key not in self._statistics:
            self._statistics[key] = self.calibrate(self.loaded.model, config)
        return self._statistics[key]

    def calibrate(self, model: PreTrainedModel, config: CompressionConfig) -> dict[str, LayerStatistics]:
        layers = find_targets(model, self.loaded.body, self.loaded.head).layers
        transformers.set_seed(config.seed)
        return calibrate(model, layers, self.groups, self.batches(config), config.fisher == "sampled")

    def compressed(
        self,
        config: CompressionConfig,
        model: PreTrainedModel | None = None,
        statistics: Mapping[str, LayerStatistics] | None = None,
    ) -> tuple[PreTrainedModel, Ranks]:
        """A copy of the dense model, or of `model` in its place, with untrained cores, and its ranks."""
        model = copy.deepcopy(model or self.loaded.model)
        statistics = statistics or self.statistics(config)
        targets = find_targets(model, self.loaded.body, self.loaded.head)
        factors: dict[str, Factorization] = {}
        spectra: dict[str, LayerSpectrum] = {}
        for group in self.groups:
            for name, layer, found in factorized(targets, {name: statistics[name] for name in group}, config):
                factors[name] = found
                spectra[name] = layer.spectrum(found.singular)
        uniform = config.allocation == "uniform"
        ranks = allocate(spectra, config.budgets[0], multiple=config.rank_multiple, uniform=uniform).ranks
        install_cores(model, factors.__getitem__, ranks, config.core_basis)
        return model, ranks

    def tuned(self, config: CompressionConfig, model: PreTrainedModel, ranks: Ranks) -> float:
        """Accuracy of a model with cores, after finetuning and as deployed."""
        finetune_cores(model, self.loaded.head, self.train, config, lambda done: None)
        return self.accuracy(deploy(model, self.loaded, ranks))

    def accuracy(self, model: PreTrainedModel) -> float:
        return evaluate(model, self.held_out, self.config.task, 32)["accuracy"]


def _some(examples: Examples, rows: int, seed: int) -> Examples:
    return examples.select(random.Random(seed).sample(range(len(examples)), min(rows, len(examples))))
