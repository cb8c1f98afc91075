"""One seed of one experiment, prepared once, to measure many methods on.

A trial holds the dense model with its head tuned, the statistics of its calibration, and rows to train and score on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from benchmarks.experiment import Experiment, read_splits, some
from benchmarks.generation import exact_match
from jactus_core.allocation import LayerSpectrum, allocate
from jactus_core.calibration import LayerStatistics, calibrate, find_readers
from jactus_core.checkpoint import deploy
from jactus_core.compression import AFTER_DECOMPOSITION, adaptation
from jactus_core.config import CompressionConfig
from jactus_core.decomposition import MEASURED_ROWS, factorized, measured
from jactus_core.encoding import Encoded, encode, to_device
from jactus_core.evaluation import Metrics, evaluate
from jactus_core.factorization import Factorization
from jactus_core.finetuning import Loss, finetune_cores, repair, tune_adapters, warm_up_head
from jactus_core.layers import Targets, find_targets, install_adapters, install_cores, merge_adapters
from jactus_core.loading import Loaded, device_of, load_model
from jactus_core.measurement import measure
from jactus_core.models import find_model
from jactus_core.tasks import TASKS

Ranks = dict[str, int | None]
Spectra = dict[str, LayerSpectrum]
Factors = tuple[dict[str, Factorization], Spectra]
SCORED_AT_ONCE = 32  # rows


class TwoFactors(LayerSpectrum):
    """Of a layer that is kept as its two factors, as the peers keep it."""

    def price(self, rank: int | None) -> int:
        return super().price(rank) if rank is None else rank * (self.m + self.n)


class Trial:
    """Compress one model in many ways; nothing that a method does is seen by the next."""

    def __init__(
        self, experiment: Experiment, seed: int, models: Path | None, data: Path | None, once: bool = False
    ) -> None:
        """`models` and `data` are folders with what the experiment names; None: both come from the hub.

        A trial of one method at one budget, `once`, lets go of statistics and factors when the cores are in place.
        """
        self.config = experiment.config(seed)
        self.once = once
        self.metric = TASKS[experiment.task].metric
        self.answer_of = experiment.answer_of
        self.splits = splits = read_splits(experiment, data)
        model = find_model(str(models / experiment.folder) if models else experiment.model)
        transformers.set_seed(seed)
        self.loaded: Loaded = load_model(model, splits.train.label_names, self.config)
        self.loaded.model.to(device_of(self.config.device))  # type: ignore[arg-type]  # the wrapped method's types
        self.train: Encoded = encode(some(splits.train, experiment.rows, seed), self.loaded, self.config)
        self.dev: Encoded = encode(splits.dev, self.loaded, self.config, scoring=True)
        self.tests: dict[str, Encoded] = {
            name: encode(rows, self.loaded, self.config, scoring=True) for name, rows in splits.tests.items()
        }
        if self.loaded.head_is_new:
            warm_up_head(self.loaded, self.train, self.config, lambda done: None)
        self._last_prepared: tuple[dict[str, Any], tuple[PreTrainedModel, Factors]] | None = None
        self._last_measured: tuple[Spectra, Spectra] | None = None  # predicted and measured
        self._statistics: dict[tuple[str, int, bool], dict[str, LayerStatistics]] = {}

    @property
    def targets(self) -> Targets:
        """The layers to compress or to adapt, of the dense model."""
        return self.targets_of(self.loaded.model)

    def targets_of(self, model: PreTrainedModel) -> Targets:
        return find_targets(model, self.loaded.body, self.loaded.head)

    @cached_property
    def groups(self) -> list[list[str]]:
        """Layers that read the same tensors, in the dense model and in any that a lever makes of it."""
        batch = self.batches(self.config, self.config.batch_size)[0]
        return find_readers(self.loaded.model, self.targets.layers, batch)

    def batches(self, config: CompressionConfig, most: int | None = None) -> list[dict[str, Any]]:
        """The calibration rows, or so many of them."""
        few = self.train.sample(config.calibration_samples, config.seed)
        if most is not None:
            few = few.sample(most, config.seed)
        rows = few.batch_rows(config.batch_size, config.seed)
        return [to_device(few.batch(part), self.loaded.model.device) for part in rows]

    def statistics(self, config: CompressionConfig, whole: bool = False) -> dict[str, LayerStatistics]:
        """Of the dense model, from one calibration for all methods that do not change it; `whole` for those that do."""
        whole = whole or config.needs_whole_covariances
        key = config.fisher, config.calibration_samples, whole
        if key not in self._statistics:
            self._statistics[key] = self.calibrate(self.loaded.model, config, whole)
        return self._statistics[key]

    def calibrate(
        self, model: PreTrainedModel, config: CompressionConfig, whole: bool = False
    ) -> dict[str, LayerStatistics]:
        transformers.set_seed(config.seed)
        layers = self.targets_of(model).layers
        return calibrate(model, layers, self.groups, self.batches(config), config.draws_labels, whole=whole)

    def compressed(
        self,
        config: CompressionConfig,
        model: PreTrainedModel | None = None,
        statistics: Mapping[str, LayerStatistics] | None = None,
        two_factors: bool = False,
    ) -> tuple[PreTrainedModel, Ranks]:
        """A copy of the dense model, or of `model` in its place, with untrained cores, and its ranks.

        The budget pays for layers in interpolative form, or for their `two_factors`.
        """
        if model is None:
            model, (factors, spectra) = self._prepared(config)
        else:
            factors, spectra = self.factorize(model, statistics or self.statistics(config, whole=True), config)
        if config.measures:
            spectra = self._measured(model, factors, spectra, config)
        if two_factors:
            spectra = {name: TwoFactors(**vars(layer)) for name, layer in spectra.items()}
        model = copy.deepcopy(model)
        uniform = config.allocation == "uniform"
        ranks = allocate(spectra, config.budgets[0], multiple=config.rank_multiple, uniform=uniform).ranks
        install_cores(model, factors.__getitem__, ranks, config.core_basis)
        if self.once:
            self._statistics.clear()
            factors.clear()
        return model, ranks

    def _prepared(self, config: CompressionConfig) -> tuple[PreTrainedModel, Factors]:
        """The dense model, tuned by adapters where the method does that, and its factors.

        The last ones are kept, as several budgets and methods ask for the same in a row.
        """
        key = {**config.model_dump(exclude=AFTER_DECOMPOSITION), **adaptation(config)}
        if self._last_prepared is None or self._last_prepared[0] != key:
            model = self.loaded.model
            if config.adapter_epochs:
                model = copy.deepcopy(model)
                install_adapters(model, self.targets.layers, config.seed, config.principal_adapters)
                tune_adapters(model, self.loaded.head, self.train, config, lambda done: None)
                merge_adapters(model)
                statistics = self.calibrate(model, config, config.needs_whole_covariances)
            else:
                statistics = self.statistics(config)
            self._last_prepared = key, (model, self.factorize(model, statistics, config))
        return self._last_prepared[1]

    def factorize(
        self, model: PreTrainedModel, statistics: Mapping[str, LayerStatistics], config: CompressionConfig
    ) -> Factors:
        targets = self.targets_of(model)
        found = [
            layer
            for group in self.groups
            for layer in factorized(targets, {name: statistics[name] for name in group}, config)
        ]
        factors = {name: factors for name, _, factors in found}
        return factors, {name: layer.spectrum(factors[name].singular) for name, layer, _ in found}

    def _measured(
        self, model: PreTrainedModel, factors: Mapping[str, Factorization], spectra: Spectra, config: CompressionConfig
    ) -> Spectra:
        """The same for every budget, so that the last ones are kept."""
        if self._last_measured is None or self._last_measured[0] is not spectra:
            transformers.set_seed(config.seed)
            layers, few = self.targets_of(model).layers, self.batches(config, MEASURED_ROWS)
            energies = measure(model, layers, factors.__getitem__, few, config.draws_labels)
            self._last_measured = spectra, measured(spectra, energies)
        return self._last_measured[1]

    def tuned(
        self, config: CompressionConfig, model: PreTrainedModel, ranks: Ranks, loss: Loss | None = None
    ) -> PreTrainedModel:
        """A model with cores after finetuning, as deployed; by default with the loss of the method."""
        if loss is None and config.repairs:
            loss = repair(self._prepared(config)[0], TASKS[config.task])
        finetune_cores(model, self.loaded.head, self.train, config, lambda done: None, loss=loss)
        return deploy(model, self.loaded, ranks)

    def scores(self, model: PreTrainedModel, rows: Encoded) -> Metrics:
        return evaluate(model, rows, self.config.task, SCORED_AT_ONCE)

    def test_scores(self, model: PreTrainedModel) -> dict[str, Metrics]:
        """By the name of the test; with `exact_match` where the answer is what the model goes on to write."""
        found = {name: self.scores(model, rows) for name, rows in self.tests.items()}
        if self.answer_of is not None:
            for name, rows in self.splits.tests.items():
                found[name]["exact_match"] = exact_match(model, self.loaded.processor, rows, self.answer_of)
        return found

    def dev_score(self, model: PreTrainedModel) -> float:
        """The task's metric by which choices are made."""
        return self.scores(model, self.dev)[self.metric]
