"""Loading a pretrained model for a task: safetensors only, no foreign code, a head for the task's labels."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from jactus_core.config import CompressionConfig
from jactus_core.errors import UnsupportedModel
from jactus_core.modeling_jactus import ARCHITECTURES
from jactus_core.models import ModelReference
from jactus_core.tasks import TASKS, Task

MOST_MISSING = 0.1
"""Share of the body's parameters that a checkpoint may lack, as for a pooler that pretraining did not use."""
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
"""oneDNN, and PyTorch above it, keep compiled kernels by shape.

Layers of many ranks on texts of many lengths fill hundreds of megabytes with 1024, the default of both.
"""


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer or image processor; `head` names the parameters of the task, not of pretraining."""

    model: PreTrainedModel
    processor: Any
    body: str  # name of the module that holds what was pretrained
    head: frozenset[str] = frozenset()
    head_is_new: bool = False
    forward_defaults: dict[str, Any] = field(default_factory=dict)  # arguments every forward call needs

    @property
    def max_tokens(self) -> int:
        """The longest sequence that both the tokenizer and the position embeddings allow."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest: int = self.processor.model_max_length
        return min(longest, positions - _reserved_positions(self.model) if positions else longest)


def _reserved_positions(model: nn.Module) -> int:
    """Positions that count from behind the padding index, as RoBERTa's do, lose those before it."""
    embeddings = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    indices = [module.padding_idx for module in embeddings if isinstance(module, nn.Embedding)]
    return max((index + 1 for index in indices if index is not None), default=0)


def device_of(wanted: str) -> torch.device:
    """The device of that name; of "auto", a GPU if there is one."""
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(reference: ModelReference, label_names: list[str], config: CompressionConfig) -> Loaded:
    """Load for `config.task`. A head is kept when the checkpoint was made for the same labels, else it is new.

    Bounds the caches of kernels, unless the environment does so. Raises UnsupportedModel for an architecture that
    cannot do the task or a checkpoint that lacks the body.
    """
    for name, size in KERNEL_CACHES.items():
        os.environ.setdefault(name, size)  # read at the first product
    task = TASKS[config.task]
    model_config = read_config(reference, task)
    same_labels = model_config.id2label == dict(enumerate(label_names))
    set_labels(model_config, label_names, task)
    try:
        processor = _processor(reference, task, config.image_size)
        model, info = getattr(transformers, task.auto_class).from_pretrained(
            reference.location,
            revision=reference.revision,
            config=model_config,
            use_safetensors=True,
            ignore_mismatched_sizes=task.is_classification,
            output_loading_info=True,
            dtype=config.dtype,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UnsupportedModel(f"'{reference.name}' cannot be loaded: {error}", "model") from error
    if not task.reads_images:
        _ensure_padding(reference.name, processor, model.config)

    body = body_name(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    pretrained = {name for name in sizes if name.startswith(f"{body}.")}
    new = ({*info["missing_keys"]} | {key[0] for key in info["mismatched_keys"]}) & sizes.keys()
    allowed = MOST_MISSING if task.is_classification else 0.0
    if sum(sizes[name] for name in new & pretrained) > allowed * sum(sizes[name] for name in pretrained):
        raise UnsupportedModel(f"The weights of '{reference.name}' do not fit its config.json.", "model")
    defaults = {"interpolate_pos_encoding": True} if config.image_size and _interpolates(model, body) else {}
    if not task.is_classification:
        return Loaded(model, processor, body)
    head = frozenset(sizes.keys() - pretrained | new)
    return Loaded(model, processor, body, head, bool(new) or not same_labels, defaults)


def read_config(reference: ModelReference, task: Task) -> PreTrainedConfig:
    """The model's configuration; raises UnsupportedModel when the model cannot do the task."""
    if reference.model_type not in ARCHITECTURES[task.auto_class]:
        raise UnsupportedModel(
            f"transformers has no {task.name} model of the type '{reference.model_type}'; choose another model or "
            "another task.",
            "model",
        )
    try:
        return AutoConfig.from_pretrained(reference.location, revision=reference.revision)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"The config.json of '{reference.name}' cannot be used: {error}", "model") from error


def set_labels(config: PreTrainedConfig, label_names: list[str], task: Task) -> None:
    """Make it the configuration of a classifier of these labels, where the task is one."""
    if task.is_classification:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: index for index, name in enumerate(label_names)}
        config.problem_type = "single_label_classification"
        if getattr(config, "use_cache", False):
            config.use_cache = False  # a classifier never generates, and the cache of a batch is large


def body_name(model: nn.Module) -> str:
    """Name of the child that holds the pretrained body: the one the architecture names, else the largest."""
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and isinstance(getattr(model, prefix, None), nn.Module):
        return str(prefix)
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    return max(sizes, key=lambda name: sizes[name])


def _interpolates(model: nn.Module, body: str) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(model.get_submodule(body).forward).parameters


def _processor(reference: ModelReference, task: Task, image_size: int | None) -> Any:
    if not task.reads_images:
        return AutoTokenizer.from_pretrained(reference.location, revision=reference.revision)
    processor = AutoImageProcessor.from_pretrained(reference.location, revision=reference.revision)
    if image_size is not None:
        square = {"height": image_size, "width": image_size}
        by_edge = "shortest_edge" in dict(processor.size)
        processor.size = {"shortest_edge": image_size} if by_edge else square
        if getattr(processor, "crop_size", None):
            processor.crop_size = square
    return processor


def _ensure_padding(name: str, tokenizer: Any, config: PreTrainedConfig) -> None:
    """Causal models often have no padding token: let the end of text stand in, and tell the model."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UnsupportedModel(f"The tokenizer of '{name}' has neither a padding nor an end token.", "model")
        tokenizer.pad_token = tokenizer.eos_token
    text_config = config.get_text_config()
    if getattr(text_config, "pad_token_id", None) is None:
        text_config.pad_token_id = tokenizer.pad_token_id
