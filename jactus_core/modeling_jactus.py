"""Loads a checkpoint made by JACTUS: an ordinary transformer whose linear layers are products of two thin ones.

This file travels inside every checkpoint, so it needs torch and transformers only. `import jactus_core` registers the
model type, and `AutoModelFor….from_pretrained(folder)` then needs no flag; without the package, pass
`trust_remote_code=True`. One file serves every architecture: the configuration and model classes are subclasses of
the base architecture's own, made when a checkpoint names it.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

AUTO_MAP = {
    "AutoConfig": "modeling_jactus.JactusConfig",
    "AutoModelForSequenceClassification": "modeling_jactus.JactusForSequenceClassification",
}


class LowRankLinear(nn.Module):
    """y = up(down(x)): (…, n) → (…, r) → (…, m), r(m + n) weights instead of mn."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class JactusConfig(PreTrainedConfig):
    """The base architecture's configuration plus `base_model_type`, `base_architecture` and `ranks` by layer name."""

    model_type = "jactus"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if cls is not JactusConfig:
            return super().from_dict(config_dict, **kwargs)
        model_class = model_class_for(config_dict["base_model_type"], config_dict["base_architecture"])
        return model_class.config_class.from_dict(config_dict, **kwargs)


@cache
def config_class_for(base_model_type: str) -> Any:
    """`Jactus<Base>Config`, the base configuration under the model type "jactus"."""
    base = CONFIG_MAPPING[base_model_type]
    return type(f"Jactus{base.__name__}", (JactusConfig, base), {"model_type": "jactus", "__module__": __name__})


@cache
def model_class_for(base_model_type: str, architecture: str) -> Any:
    """`Jactus<Architecture>`, the base architecture with low-rank layers where the configuration names a rank."""
    config_class = config_class_for(base_model_type)
    base = getattr(transformers, architecture, None)
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise ValueError(f"transformers {transformers.__version__} has no model class '{architecture}'.")

    def initialize(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        for name, rank in config.ranks.items():
            dense = self.get_submodule(name)
            bias = dense.bias is not None
            self.set_submodule(name, LowRankLinear(dense.in_features, dense.out_features, rank, bias))

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        self.config.auto_map = dict(AUTO_MAP)
        base.save_pretrained(self, save_directory, *args, **kwargs)
        shutil.copyfile(__file__, Path(save_directory) / "modeling_jactus.py")

    methods = {"__init__": initialize, "save_pretrained": save_pretrained}
    members = {**methods, "config_class": config_class, "__module__": __name__}
    model_class = type(f"Jactus{architecture}", (base,), members)
    AutoModelForSequenceClassification.register(config_class, model_class, exist_ok=True)
    return model_class


class JactusForSequenceClassification:
    """What `auto_map` names: hands over to the class made for the checkpoint's architecture."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to do: saving writes `auto_map` itself."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, config: Any, **kwargs: Any) -> PreTrainedModel:
        model_class = model_class_for(config.base_model_type, config.base_architecture)
        return model_class.from_pretrained(folder, *args, config=config, **kwargs)


AutoConfig.register("jactus", JactusConfig, exist_ok=True)
