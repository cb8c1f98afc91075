"""The loss of every task: cross-entropy of what the model predicts, whatever the shape of its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""Label of a position that does not count."""


def without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model needs for its logits alone."""
    return {key: value for key, value in batch.items() if key != "labels"}


def aligned(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (batch, positions, classes) beside the labels (batch, positions) that they predict.

    A classifier's logits (batch, classes) have one position. A causal language model's logits
    (batch, tokens, vocabulary) at each token predict the label of the next one.
    """
    if labels.dim() == 1:
        return logits[:, None], labels[:, None]
    return logits[:, :-1], labels[:, 1:]


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (scalar, nats, float32) summed over every label that counts."""
    logits, labels = aligned(logits, labels)
    counted = labels != IGNORED
    return functional.cross_entropy(logits[counted].float(), labels[counted], reduction="sum")


def drawn_labels(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Labels like those of a batch, drawn from the model's own answers to it, of a language model at every token.

    The second moment of their gradients estimates the Fisher information, which is the curvature of `divergence` at
    the model itself, rather than its empirical stand-in (Kunstner, Balles and Hennig, 2019).
    """
    labels: Tensor = batch["labels"]
    answers = logits.detach().float().softmax(-1)
    if not answers.isfinite().all():
        return labels  # their loss tells, where drawing would fail
    drawn = torch.multinomial(answers.flatten(0, -2), 1).view(answers.shape[:-1])
    if labels.dim() == 1:
        return drawn
    return drawn.roll(1, dims=1).masked_fill(~batch["attention_mask"].bool(), IGNORED)


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence (scalar, nats per position, float32) of answers from those that are wanted.

    Both are logits (positions, classes).
    """
    answers, targets = logits.float().log_softmax(-1), wanted.float().log_softmax(-1)
    return functional.kl_div(answers, targets, log_target=True, reduction="batchmean")


def apart(states: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
    """Squared error (scalar, float32) of hidden states from those that are wanted, by the variance of these.

    Both are (batch, …, features); where they are a text's, `mask` (batch, tokens) tells tokens from filling.
    """
    real = mask.bool() if mask is not None and mask.shape == states.shape[:2] else ...
    states, wanted = (all_of[real].float().flatten(0, -2) for all_of in (states, wanted))
    return (states - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()


def row_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: summed cross-entropy (nats), how many labels count, and how many of these are predicted right."""
    logits, labels = aligned(logits, labels)
    counted = labels != IGNORED
    answers, targets = logits[counted].float(), labels[counted]  # few positions of many, where a prompt goes before
    losses = answers.new_zeros(labels.shape)
    losses[counted] = functional.cross_entropy(answers, targets, reduction="none")
    correct = counted.clone()
    correct[counted] = answers.argmax(-1) == targets
    return losses.sum(1), counted.sum(1), correct.sum(1)
