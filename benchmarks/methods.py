"""JACTUS and its peers as one table: how each makes a trainable model of the dense one, and which rates it may choose.

All of them adapt the same layers and the task head, from the same warmed-up head, and all go through the same training
loop with the same optimizer, schedule, rows and steps.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from benchmarks.trial import Trial
from jactus_core.config import CompressionConfig
from jactus_core.finetuning import fit
from jactus_core.layers import dense_layer, train_only

BUDGETS = (0.8, 0.6, 0.4)
TUNED_AT = 0.6
"""The budget at which a learning rate is chosen, on dev and with the first seed, for every budget and seed."""
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Learning rates to choose from: one and its two neighbours at first, more while one at the edge is best."""
ADAPTER_RANK = 16


Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A way to a model that is tuned for the task; `train` gets the trial, the budget, the rate and the settings."""

    title: str
    train: Callable[[Trial, float, float, Settings], PreTrainedModel]
    settings: Settings = field(default_factory=dict)
    rate: float | None = 1e-3  # where the choice begins; None: nothing is trained
    budgets: tuple[float, ...] = (1.0,)
    rate_of: str | None = None  # the method whose learning rate is taken
    needs_head: bool = False

    def run(self, trial: Trial, budget: float, rate: float) -> PreTrainedModel:
        """The model as deployed, all of it in the type of the dense model's weights."""
        model = self.train(trial, budget, rate, self.settings)
        return model.to(trial.loaded.model.dtype)  # type: ignore[arg-type]  # the wrapped method's types lose `self`


def untouched(trial: Trial, budget: float, rate: float, settings: Settings) -> PreTrainedModel:
    """The dense model, whose head, if it has one, was warmed up."""
    return copy.deepcopy(trial.loaded.model)


def probed(trial: Trial, budget: float, rate: float, settings: Settings) -> PreTrainedModel:
    """The head alone."""
    model = copy.deepcopy(trial.loaded.model)
    train_only(model, trial.loaded.head)
    return _fitted(trial, model, rate)


def fully_finetuned(trial: Trial, budget: float, rate: float, settings: Settings) -> PreTrainedModel:
    model = copy.deepcopy(trial.loaded.model)
    train_only(model, frozenset(name for name, _ in model.named_parameters()))
    return _fitted(trial, model, rate)


def adapted(trial: Trial, budget: float, rate: float, settings: Settings) -> PreTrainedModel:
    """LoRA and its kin beside every targeted layer of the dense model, merged in the end."""
    model = copy.deepcopy(trial.loaded.model)
    return _adapted(trial, model, trial.targets_of(model).layers, rate, settings)


def compressed_then_adapted(trial: Trial, budget: float, rate: float, settings: Settings) -> PreTrainedModel:
    """Compress in a peer's way, then LoRA on both factors of every layer (on W itself where a layer stays dense)."""
    config = trial.config.model_copy(update={"budgets": (budget,), **settings})
    model, ranks = trial.compressed(config, two_factors=True)
    for name in ranks:
        model.set_submodule(name, _as_two_factors(model.get_submodule(name)))
    layers = [
        name if rank is None else f"{name}.{factor}"
        for name, rank in ranks.items()
        for factor in (("",) if rank is None else ("down", "up"))
    ]
    return _adapted(trial, model, layers, rate, {})


def _as_two_factors(layer: Any) -> nn.Module:
    """A layer with an untrained core as the peers deploy it: two thin layers, or the dense one."""
    if layer.base is not None:
        return layer.folded()
    down, up = (layer.core @ layer.down.float()).to(layer.down.dtype), layer.up
    return nn.Sequential(
        OrderedDict(down=dense_layer(down.detach(), None, False), up=dense_layer(up, layer.bias, False))
    )


def compressed_with_cores(
    trial: Trial, budget: float, rate: float, settings: Settings, two_factors: bool = False
) -> PreTrainedModel:
    """Compress, then train cores: the whole of JACTUS, or a peer's compression with our finetuning."""
    config = trial.config.model_copy(update={"budgets": (budget,), "learning_rate": rate, **settings})
    return trial.tuned(config, *trial.compressed(config, two_factors=two_factors))


def _adapted(
    trial: Trial, model: PreTrainedModel, layers: Iterable[str], rate: float, settings: Settings
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
    include={
        "fisher",
        "shrinkage",
        "covariance_floor",
        "weighting",
        "union",
        "allocation",
        "core_basis",
        "trained",
    }
)
PLAIN_SVD = {**JACTUS, "weighting": "none", "allocation": "uniform", "adapter_share": 0.0}
SVD_LLM = {**PLAIN_SVD, "weighting": "input", "shrinkage": 0.0}
SVD_LLM_GLOBAL = {**SVD_LLM, "allocation": "global"}
peer_with_cores = partial(compressed_with_cores, two_factors=True)

METHODS: dict[str, Method] = {
    "jactus": Method("JACTUS", compressed_with_cores, JACTUS, budgets=BUDGETS),
    "lora": Method("LoRA r=16", adapted, {}),
    "dora": Method("DoRA r=16", adapted, {"use_dora": True}),
    "pissa": Method("PiSSA r=16", adapted, {"init_lora_weights": "pissa"}, 3e-4),
    "full": Method("full finetuning", fully_finetuned, {}, 1e-4),
    "probe": Method("linear probe", probed, {}, 3e-3, needs_head=True),
    "untouched": Method("untouched", untouched, {}, None),
    "svd-llm+lora": Method("SVD-LLM, then LoRA", compressed_then_adapted, SVD_LLM, budgets=BUDGETS),
    "svd-llm+cores": Method("SVD-LLM, then cores", peer_with_cores, SVD_LLM, budgets=BUDGETS),
} | {
    f"{name}+{way}": Method(f"{title}, then {title_of_way}", train, settings, budgets=BUDGETS, rate_of=f"svd-llm+{way}")
    for name, title, settings in (
        ("svd-llm-global", "SVD-LLM with global ranks", SVD_LLM_GLOBAL),
        ("svd", "plain SVD", PLAIN_SVD),
    )
    for way, title_of_way, train in (
        ("lora", "LoRA", compressed_then_adapted),
        ("cores", "cores", peer_with_cores),
    )
}
RIVALS = tuple(name for name in METHODS if "+" in name)
"""Ways to compress and then tune."""
