"""Step 6, evaluate: held-out quality and what a model weighs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jactus_core.distributed import ALONE, Processes
from jactus_core.encoding import Choice, Encoded, to_device
from jactus_core.losses import row_scores
from jactus_core.modeling_jactus import LowRankLinear
from jactus_core.precision import fast_bfloat16
from jactus_core.tasks import TASKS, TaskName

Metrics = dict[str, float]


@dataclass(frozen=True)
class Size:
    """Parameters and bytes of a model, and of its compressible layers' weights alone.

    The order of a low-rank layer's inputs takes bytes, but is no parameter.
    """

    parameters: int
    bytes: int
    compressible_parameters: int
    compressible_bytes: int


def size_of(model: nn.Module, layers: list[str]) -> Size:
    """Count distinct tensors; `layers` names the compressible layers, in any form they now have. Biases, which no
    compression changes, count for the model only."""
    orders = [module.order for module in model.modules() if isinstance(module, LowRankLinear)]
    weights = [
        parameter
        for layer in layers
        for name, parameter in model.get_submodule(layer).named_parameters()
        if name.endswith("weight")
    ]
    return Size(*_weigh([*model.parameters()], orders), *_weigh(weights, orders))


def _weigh(parameters: list[nn.Parameter], orders: list[Tensor]) -> tuple[int, int]:
    return sum(p.numel() for p in parameters), sum(tensor.nbytes for tensor in [*parameters, *orders])


@torch.inference_mode()
def evaluate(
    model: PreTrainedModel,
    data: Encoded,
    task: TaskName,
    batch_size: int,
    report: Callable[[float], None] | None = None,
    processes: Processes = ALONE,
) -> Metrics:
    """The task's metrics over `data`; of several processes each runs its share of the rows.

    Classification: `accuracy` in [0, 1] and `loss` (nats per row). Text generation: `perplexity`, `loss` (nats per
    token) and `token_accuracy`. Multiple choice: `accuracy`, by the likeliest choice, and `accuracy_normalized`, by
    the likeliest per byte of its text.
    """
    model.eval()
    rows = processes.share(data.order(by_length=True))
    scores = torch.zeros(3, len(data), device=model.device)
    done = 0
    with fast_bfloat16(model):
        for batch in data.batches(batch_size, rows):
            batch = to_device(batch, model.device)
            labels = batch.pop("labels")
            at = rows[done : done + len(labels)]
            scores[:, at] = torch.stack([found.float() for found in row_scores(model(**batch).logits, labels)])
            done += len(labels)
            if report:
                report(done / len(rows))
    losses, counts, correct = processes.sum_(scores).cpu().double()
    if task == "multiple-choice":
        return _choices(losses, data.choices)
    loss, share = float(losses.sum() / counts.sum()), float(correct.sum() / counts.sum())
    if TASKS[task].is_classification:
        return {"accuracy": share, "loss": loss}
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "token_accuracy": share}


def _choices(losses: Tensor, choices: tuple[Choice, ...]) -> Metrics:
    """Accuracies of picking the choice with the lowest loss, in sum and per byte."""
    questions: dict[int, list[int]] = {}
    for row, choice in enumerate(choices):
        questions.setdefault(choice.question, []).append(row)
    raw = [min(rows, key=lambda row: float(losses[row])) for rows in questions.values()]
    per_byte = [min(rows, key=lambda row: float(losses[row]) / choices[row].length) for rows in questions.values()]
    return {
        "accuracy": sum(choices[row].is_answer for row in raw) / len(questions),
        "accuracy_normalized": sum(choices[row].is_answer for row in per_byte) / len(questions),
    }
