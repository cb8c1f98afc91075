"""Metrics over small made-up rows, against counting by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jactus_core.encoding import Choice, Encoded
from jactus_core.evaluation import evaluate, size_of
from jactus_core.modeling_jactus import LowRankLinear
from jactus_core.tasks import TaskName
from tests.tiny import tiny_classifier


class Rows:
    """Encoded rows whose logits are known beforehand; longest first, and the order is not that of the file."""

    def __init__(self, logits: Tensor, labels: Tensor, choices: Sequence[Choice] = ()) -> None:
        self.logits, self.labels, self.choices = logits, labels, tuple(choices)

    def __len__(self) -> int:
        return len(self.labels)

    def order(self, by_length: bool = False) -> list[int]:
        return list(range(1, len(self), 2)) + list(range(0, len(self), 2)) if by_length else list(range(len(self)))

    def batches(self, batch_size: int, rows: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(rows), batch_size):
            chosen = list(rows[start : start + batch_size])
            yield {"logits": self.logits[chosen], "labels": self.labels[chosen]}


class Oracle(nn.Module):
    """Answers what it is given."""

    device = torch.device("cpu")

    def forward(self, logits: Tensor) -> Any:
        assert not self.training
        return SimpleNamespace(logits=logits)


def evaluated(rows: Rows, task: TaskName, batch_size: int = 2, **options: Any) -> dict[str, float]:
    return evaluate(cast(PreTrainedModel, Oracle().train()), cast(Encoded, rows), task, batch_size, **options)


def certain(labels: Tensor, share: Sequence[float], classes: int = 4) -> Tensor:
    """Causal logits (rows, tokens, classes) that give each row's next labels a probability of `share[row]`."""
    p = torch.tensor(share)[:, None, None]
    following = nn.functional.one_hot(labels.roll(-1, 1).clamp(min=0), classes)
    return torch.where(following.bool(), p, (1 - p) / (classes - 1)).log()


@pytest.mark.parametrize("task", ["text-classification", "image-classification"])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_a_classifier_is_scored_by_accuracy_and_loss_per_row(task: TaskName, batch_size: int) -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.3, 0.4, 0.3]])
    labels = torch.tensor([0, 2, 1, 2, 1])

    found = evaluated(Rows(probabilities.log(), labels), task, batch_size)

    right = [0.7, 0.3, 0.4, 0.6, 0.4]
    assert found == {"accuracy": pytest.approx(3 / 5), "loss": pytest.approx(-sum(map(math.log, right)) / 5)}


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_text_generation_is_scored_per_token_that_counts(batch_size: int) -> None:
    labels = torch.tensor([[-100, -100, 2, 3], [1, 2, 3, 0], [3, 1, -100, -100]])
    share = (0.5, 0.2, 0.4)

    found = evaluated(Rows(certain(labels, share), labels), "text-generation", batch_size)

    loss = -(2 * math.log(0.5) + 3 * math.log(0.2) + 1 * math.log(0.4)) / 6
    assert found["loss"] == pytest.approx(loss)
    assert found["perplexity"] == pytest.approx(math.exp(loss))
    assert found["token_accuracy"] == pytest.approx((2 + 1) / 6)  # 0.2 is less than each other token has


def test_a_hopeless_perplexity_is_large_and_finite() -> None:
    labels = torch.tensor([[0, 1, 2]])

    found = evaluated(Rows(-1e4 * nn.functional.one_hot(labels.roll(-1, 1), 4).float(), labels), "text-generation")

    assert found["loss"] > 1000
    assert math.isfinite(found["perplexity"])


TOKENS, SHARES, BYTES = (1, 3, 2, 2, 4, 1), (0.5, 0.6, 0.3, 0.2, 0.9, 0.4), (2, 12, 30, 3, 4, 1)


def questions(numbers: Sequence[int], answers: set[int]) -> Rows:
    """Rows of TOKENS that count, each likely by its share, as choices of questions; `answers` are rows."""
    labels = torch.full((6, 5), -100)
    for row, count in enumerate(TOKENS):
        labels[row, 1 : 1 + count] = 1 + row % 3
    choices = [Choice(numbers[row], BYTES[row], row in answers) for row in range(6)]
    return Rows(certain(labels, SHARES), labels, choices)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_choice_is_picked_by_its_likelihood_in_sum_and_per_byte(batch_size: int) -> None:
    loss = [-count * math.log(p) for count, p in zip(TOKENS, SHARES, strict=True)]
    per_byte = [value / length for value, length in zip(loss, BYTES, strict=True)]
    assert min(loss) == loss[4]
    assert min(per_byte) == per_byte[2]

    for answer in range(6):
        found = evaluated(questions([0] * 6, {answer}), "multiple-choice", batch_size)
        assert found == {"accuracy": float(answer == 4), "accuracy_normalized": float(answer == 2)}


def test_choices_compete_within_their_question_only() -> None:
    # in sum, rows 0, 4 and 5 are the likeliest of their questions; per byte, rows 1, 2 and 5 are
    found = evaluated(questions([0, 0, 1, 1, 1, 2], {0, 2, 5}), "multiple-choice")
    assert found == {"accuracy": pytest.approx(2 / 3), "accuracy_normalized": pytest.approx(2 / 3)}
    found = evaluated(questions([0, 0, 1, 1, 1, 2], {0, 4, 5}), "multiple-choice")
    assert found == {"accuracy": 1.0, "accuracy_normalized": pytest.approx(1 / 3)}


def test_progress_is_reported_up_to_the_end() -> None:
    reports: list[float] = []

    evaluated(Rows(torch.zeros(5, 2), torch.zeros(5).long()), "text-classification", report=reports.append)

    assert reports == pytest.approx([0.4, 0.8, 1.0])


def test_sizes_count_tied_tensors_once_and_compressible_weights_apart() -> None:
    model: Any = tiny_classifier()
    name = "bert.encoder.layer.0.intermediate.dense"
    whole = sum(parameter.numel() for parameter in model.parameters())

    dense = size_of(model, [name])
    model.set_submodule(name, LowRankLinear(16, 24, 5, bias=True).bfloat16())
    model.bert.encoder.layer[1].output.dense.weight = model.bert.encoder.layer[0].output.dense.weight
    thin = size_of(model, [name])

    assert (dense.parameters, dense.bytes) == (whole, 4 * whole)
    assert (dense.compressible_parameters, dense.compressible_bytes) == (24 * 16, 4 * 24 * 16)
    rest = whole - 24 * 16 - 24 - 24 * 16
    assert (thin.compressible_parameters, thin.compressible_bytes) == (5 * 35, 2 * 5 * 35 + 4 * 16)
    assert (thin.parameters, thin.bytes) == (rest + 5 * 35 + 24, 4 * rest + 2 * (5 * 35 + 24) + 4 * 16)
