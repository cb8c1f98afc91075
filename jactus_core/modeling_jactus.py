"""The model type "jactus": any transformers architecture with some linear layers replaced by low-rank ones.

This file travels inside every checkpoint, so it needs torch and transformers only. `import jactus_core` registers the
model type, and `AutoModelFor….from_pretrained(folder)` then needs no flag; without the package, pass
`trust_remote_code=True`. One file serves every architecture: the configuration and model classes are subclasses of
the base architecture's own, made when a checkpoint names it.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ARCHITECTURES: dict[str, Any] = {
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


class LowRankLinear(nn.Module):
    """y = up(p + down(q)): (…, n) → (…, r) → (…, m), with p the first r inputs in `order` and q the rest.

    This interpolative form of a matrix of rank r has r(m + n - r) weights, r² fewer than its two factors, and for any
    r below m and n fewer than the dense layer.
    """

    order: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.down = nn.Linear(in_features - rank, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)
        self.register_buffer("order", torch.arange(in_features, dtype=torch.int32))

    @property
    def weight(self) -> Tensor:
        """Not the product: what an architecture that asks a layer for its dtype or device needs (T5 does)."""
        return self.up.weight

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        rank = self.up.in_features
        rows = x.reshape(-1, x.shape[-1])
        rows = rows.gather(1, self.order.long().expand(rows.shape[0], -1))  # on CPUs, in bfloat16, index_select is slow
        return self.up(rows[:, :rank] + self.down(rows[:, rank:])).view(*x.shape[:-1], -1)


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """(m, n) = (outputs, inputs) of a linear layer, be it torch's Linear or GPT-2's transposed Conv1D."""
    m, n = cast(Tensor, layer.weight).shape
    return (n, m) if type(layer).__name__ == "Conv1D" else (m, n)


class JactusConfig(PreTrainedConfig):
    """The base architecture's configuration plus `base_model_type`, `base_architecture`, `ranks` by the layers' names
    on disk, and `forward_defaults`, arguments that every forward call gets unless it says otherwise."""

    model_type = "jactus"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if cls is not JactusConfig:
            return super().from_dict(config_dict, **kwargs)
        missing = {"base_model_type", "base_architecture"} - config_dict.keys()
        if missing:
            raise ValueError(f"The config.json of a jactus checkpoint must have '{min(missing)}'.")
        model_class = model_class_for(config_dict["base_model_type"], config_dict["base_architecture"])
        return model_class.config_class.from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write this file beside config.json, which names it."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(__file__, Path(save_directory) / "modeling_jactus.py")
        super().save_pretrained(save_directory, *args, **kwargs)


@cache
def config_class_for(base_model_type: str) -> Any:
    """`Jactus<Base>Config`, the base configuration under the model type "jactus"."""
    if base_model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers {transformers.__version__} has no model type '{base_model_type}'.")
    base = CONFIG_MAPPING[base_model_type]
    return type(f"Jactus{base.__name__}", (JactusConfig, base), {"model_type": "jactus", "__module__": __name__})


@cache
def model_class_for(base_model_type: str, architecture: str) -> Any:
    """`Jactus<Architecture>`, the base architecture with low-rank layers where the configuration names a rank."""
    config_class = config_class_for(base_model_type)
    base = getattr(transformers, architecture, None)
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise ValueError(f"transformers {transformers.__version__} has no model class '{architecture}'.")
    autos = [name for name, known in ARCHITECTURES.items() if architecture in _flat(known.values())]

    def initialize(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        if config.ranks:
            linears = [name for name, module in self.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
            for name, on_disk in names_on_disk(self, linears).items():
                if on_disk in config.ranks:
                    _replace(self, name, config.ranks[on_disk])

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return base.forward(self, *args, **{**self.config.forward_defaults, **kwargs})

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        self.config.auto_map = {"AutoConfig": "modeling_jactus.JactusConfig"}
        self.config.auto_map |= dict.fromkeys(autos, "modeling_jactus.JactusModel")
        base.save_pretrained(self, save_directory, *args, **kwargs)

    methods = {"__init__": initialize, "forward": forward, "save_pretrained": save_pretrained}
    members = {**methods, "config_class": config_class, "__module__": __name__}
    model_class = type(f"Jactus{architecture}", (base,), members)
    for auto in autos:
        getattr(transformers, auto).register(config_class, model_class, exist_ok=True)
    renaming = get_checkpoint_conversion_mapping(architecture) or get_checkpoint_conversion_mapping(base_model_type)
    if renaming is not None:
        register_checkpoint_conversion_mapping(model_class.__name__, renaming, overwrite=True)
    return model_class


def names_on_disk(model: PreTrainedModel, layers: Iterable[str]) -> dict[str, str]:
    """Each layer's name in the checkpoint's files; it differs where transformers renames modules as it loads them."""
    marks = {f"{name}.weight": (name, torch.tensor(index, device="cpu")) for index, name in enumerate(layers)}
    names = [name for name, _ in marks.values()]
    on_disk = revert_weight_conversion(model, {key: mark for key, (_, mark) in marks.items()})
    return {names[int(mark)]: key.removesuffix(".weight") for key, mark in on_disk.items()}


def _flat(names: Iterable[Any]) -> set[str]:
    """Class names, of which some stand in tuples."""
    return {name for entry in names for name in ([entry] if isinstance(entry, str) else entry)}


def _replace(model: nn.Module, name: str, rank: int) -> None:
    dense: Any = model.get_submodule(name)
    m, n = matrix_shape(dense)
    model.set_submodule(name, LowRankLinear(n, m, rank, dense.bias is not None))


class JactusModel:
    """What `auto_map` names: hands over to the class made for the checkpoint's architecture."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to do: saving writes `auto_map` itself."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, config: Any, **kwargs: Any) -> PreTrainedModel:
        model_class = model_class_for(config.base_model_type, config.base_architecture)
        return model_class.from_pretrained(folder, *args, config=config, **kwargs)


AutoConfig.register("jactus", JactusConfig, exist_ok=True)
