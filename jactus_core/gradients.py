"""What layers read, and the gradients of what they write, over batches: one forward and backward pass for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jactus_core.errors import NonFiniteLoss
from jactus_core.losses import cross_entropy_sum, drawn_labels, without_labels
from jactus_core.precision import fast_bfloat16


class Observer(Protocol):
    """Looks on while batches go through a model."""

    def begin(self, number: int, batch: Mapping[str, Any]) -> None:
        """The batch of this number, from 0, is next."""

    def see(self, name: str, x: Tensor, y: Tensor) -> Callable[[Tensor], None]:
        """A layer reads x and writes y; what this returns is called with the gradient of the loss at y."""


def observe(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    observer: Observer,
    sampled_labels: bool = False,
) -> None:
    """Run forward and backward over `batches` and show the observer every layer.

    Each batch is a set of keyword arguments for `model`, with `labels` and, for padded text, `attention_mask`; its loss
    is summed over the labels. Only activations get gradients, so the cost is a forward and the activation half of a
    backward pass. Raises NonFiniteLoss naming the batch.
    """
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with _hooked(layers, observer), fast_bfloat16(model):
        for number, batch in enumerate(batches):
            observer.begin(number, batch)
            logits = model(**without_labels(batch)).logits
            loss = cross_entropy_sum(logits, drawn_labels(logits, batch) if sampled_labels else batch["labels"])
            if not torch.isfinite(loss):
                raise NonFiniteLoss(f"The loss of calibration batch {number + 1} is {loss.item()}.")
            if loss.requires_grad:  # not when every layer stayed silent
                loss.backward()


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], observer: Observer) -> Iterator[None]:
    def show(name: str, x: Tensor, y: Tensor) -> Tensor:
        if not y.requires_grad:
            y.requires_grad_()  # no parameter requires a gradient, so the graph starts at the first layers
        y = y.clone()  # a hook on a view, as Linear returns, is lost once the model changes the view in place
        y.register_hook(observer.see(name, x, y))
        return y

    handles = [
        layer.register_forward_hook(lambda _, args, output, name=name: show(name, args[0], output))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_row(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """A batch as (rows, tokens, size), and which of its tokens are real.

    A batch (tokens, size), as behind a pooler, holds one token per row.
    """
    x = x.detach().unsqueeze(1).flatten(1, -2)
    if mask is not None and x.shape[:2] == (mask.numel(), 1):  # an architecture that flattens rows and tokens
        x = x.reshape(*mask.shape, -1)
    if mask is None or mask.shape != x.shape[:2]:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return x, mask
