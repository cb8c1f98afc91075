"""Step 6, evaluate: held-out accuracy and what a model weighs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from jactus_core.tokenized import TokenizedTexts, to_device


@dataclass(frozen=True)
class Size:
    """Parameters and bytes of a model, and of its compressible layers' weights alone."""

    parameters: int
    bytes: int
    compressible_parameters: int
    compressible_bytes: int


def size_of(model: nn.Module, layers: list[str]) -> Size:
    """Count distinct tensors; `layers` names the compressible layers, in any form they now have. Biases, which no
    compression changes, count for the model only."""
    everything = list(model.parameters())
    weights = [
        parameter
        for layer in layers
        for name, parameter in model.get_submodule(layer).named_parameters()
        if name.endswith("weight")
    ]
    return Size(*_weigh(everything), *_weigh(weights))


def _weigh(parameters: list[nn.Parameter]) -> tuple[int, int]:
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


@torch.inference_mode()
def accuracy(
    model: PreTrainedModel, data: TokenizedTexts, batch_size: int, report: Callable[[float], None] | None = None
) -> float:
    """Share of rows whose highest logit is the label, in [0, 1]."""
    model.eval()
    correct = done = 0
    for batch in data.batches(batch_size, by_length=True):
        batch = to_device(batch, model.device)
        labels = batch.pop("labels")
        correct += int((model(**batch).logits.argmax(-1) == labels).sum())
        done += len(labels)
        if report:
            report(done / len(data))
    return correct / len(data)
