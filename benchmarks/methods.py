"""JACTUS and its peers as one table: how each makes a trainable model of the dense one, and which rates it may choose.

All of them adapt the same layers and the task head, from the same warmed-up head, and all go through the same training
loop with the same optimizer, schedule, rows and steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from benchmarks.trial import Trial
from jactus_core.config import CompressionConfig
from jactus_core.finetuning import fit
from jactus_core.layers import fold_cores, train_only

BUDGETS = (0.8, 0.6, 0.4)
TUNED_AT = 0.6
"""The budget at which a learning rate is chosen, on dev and with the first seed, for every budget and seed."""
CORE_RATES = (5e-4, 1e-3, 2e-3)
ADAPTER_RATES = (3e-4, 1e-3, 3e-3)
ADAPTER_RANK = 16


@dataclass(frozen=True)
class Method:
    """A way to a model that is tuned for the task. `train` gets the trial, the budget and the learning rate."""

    title: str
    train: Callable[[Trial, float, float], PreTrainedModel]
    rates: tuple[float, ...]
    budgets: tuple[float, ...] = (1.0,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    rate_of: str | None = None  # the method whose learning rate is taken
    needs_head: bool = False


def untouched(trial: Trial, budget: float, rate: float) -> PreTrainedModel:
    """The dense model, whose head, if it has one, was warmed up."""
    return copy.deepcopy(trial.loaded.model)


def probe(trial: Trial, budget: float, rate: float) -> PreTrainedModel:
    model = copy.deepcopy(trial.loaded.model)
    train_only(model, trial.loaded.head)
    return _fitted(trial, model, rate)


def full(trial: Trial, budget: float, rate: float) -> PreTrainedModel:
    model = copy.deepcopy(trial.loaded.model)
    train_only(model, frozenset(name for name, _ in model.named_parameters()))
    return _fitted(trial, model, rate)


def adapters(**settings: Any) -> Callable[[Trial, float, float], PreTrainedModel]:
    """LoRA and its kin beside every targeted layer of the dense model, merged in the end."""

    def train(trial: Trial, budget: float, rate: float) -> PreTrainedModel:
        model = copy.deepcopy(trial.loaded.model)
        return _adapted(trial, model, trial.targets_of(model).layers, rate, settings)

    return train


def compressed_then_adapted(**settings: Any) -> Callable[[Trial, float, float], PreTrainedModel]:
    """Compress in a peer's way, then LoRA on both factors of every layer (on W itself where a layer stays dense)."""

    def train(trial: Trial, budget: float, rate: float) -> PreTrainedModel:
        model, ranks = trial.compressed(trial.config.model_copy(update={"budgets": (budget,), **settings}))
        fold_cores(model)
        layers = [
            name if rank is None else f"{name}.{factor}"
            for name, rank in ranks.items()
            for factor in (("",) if rank is None else ("down", "up"))
        ]
        return _adapted(trial, model, layers, rate, {})

    return train


def cores(**settings: Any) -> Callable[[Trial, float, float], PreTrainedModel]:
    """Compress, then train cores: the whole of JACTUS, or a peer's compression with our finetuning."""

    def train(trial: Trial, budget: float, rate: float) -> PreTrainedModel:
        config = trial.config.model_copy(update={"budgets": (budget,), "learning_rate": rate, **settings})
        return trial.tuned(config, *trial.compressed(config))

    return train


def _adapted(
    trial: Trial, model: PreTrainedModel, layers: Iterable[str], rate: float, settings: Mapping[str, Any]
) -> PreTrainedModel:
    config = LoraConfig(r=ADAPTER_RANK, lora_alpha=ADAPTER_RANK, target_modules=list(layers), **settings)
    inject_adapter_in_model(config, model)
    train_only(model, trial.loaded.head | {name for name, _ in model.named_parameters() if ".lora_" in name})
    _fitted(trial, model, rate)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return model


def _fitted(trial: Trial, model: PreTrainedModel, rate: float) -> PreTrainedModel:
    fit(model, trial.train, trial.config.model_copy(update={"learning_rate": rate}), lambda done: None)
    return model


JACTUS = CompressionConfig().model_dump(
    include={"fisher", "shrinkage", "covariance_floor", "weighting", "union", "allocation"}
    | {"rank_multiple", "core_basis", "trained"}
)
PLAIN_SVD = {**JACTUS, "weighting": "none", "allocation": "uniform"}
SVD_LLM = {**JACTUS, "weighting": "input", "allocation": "uniform", "shrinkage": 0.0}
SVD_LLM_GLOBAL = {**SVD_LLM, "allocation": "global"}
DORA = {"use_dora": True}
PISSA = {"init_lora_weights": "pissa"}

METHODS: Mapping[str, Method] = {
    "jactus": Method("JACTUS", cores(**JACTUS), CORE_RATES, BUDGETS, settings=JACTUS),
    "lora": Method("LoRA r=16", adapters(), ADAPTER_RATES),
    "dora": Method("DoRA r=16", adapters(**DORA), ADAPTER_RATES, settings=DORA),
    "pissa": Method("PiSSA r=16", adapters(**PISSA), (1e-4, 3e-4, 1e-3), settings=PISSA),
    "full": Method("full finetuning", full, (3e-5, 1e-4, 3e-4)),
    "probe": Method("linear probe", probe, (1e-3, 3e-3, 1e-2), needs_head=True),
    "untouched": Method("untouched", untouched, (0.0,)),
    "svd-llm+lora": Method(
        "SVD-LLM, then LoRA", compressed_then_adapted(**SVD_LLM), ADAPTER_RATES, BUDGETS, settings=SVD_LLM
    ),
    "svd-llm+cores": Method("SVD-LLM, then cores", cores(**SVD_LLM), CORE_RATES, BUDGETS, settings=SVD_LLM),
    "svd-llm-global+lora": Method(
        "SVD-LLM with global ranks, then LoRA",
        compressed_then_adapted(**SVD_LLM_GLOBAL),
        ADAPTER_RATES,
        BUDGETS,
        settings=SVD_LLM_GLOBAL,
        rate_of="svd-llm+lora",
    ),
    "svd-llm-global+cores": Method(
        "SVD-LLM with global ranks, then cores",
        cores(**SVD_LLM_GLOBAL),
        CORE_RATES,
        BUDGETS,
        settings=SVD_LLM_GLOBAL,
        rate_of="svd-llm+cores",
    ),
    "svd+lora": Method(
        "plain SVD, then LoRA",
        compressed_then_adapted(**PLAIN_SVD),
        ADAPTER_RATES,
        BUDGETS,
        settings=PLAIN_SVD,
        rate_of="svd-llm+lora",
    ),
    "svd+cores": Method(
        "plain SVD, then cores",
        cores(**PLAIN_SVD),
        CORE_RATES,
        BUDGETS,
        settings=PLAIN_SVD,
        rate_of="svd-llm+cores",
    ),
}
