"""Three levers beyond the paper, at the budget and the number of steps of the defaults that they are measured against.

None of them is part of the method; the table that `benchmarks.ablation` fills shows what each would bring.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.trial import Trial
from jactus_core.factorization import Metric
from jactus_core.finetuning import finetune_cores
from jactus_core.layers import fold_cores, multiplied, train_only
from jactus_core.losses import cross_entropy_sum, divergence, without_labels
from jactus_core.modeling_jactus import LowRankLinear

TEMPERATURE = 2.0


def natural_gradient(trial: Trial, rate: float) -> PreTrainedModel:
    """Project W − rate · C_g⁻¹ G C_x⁻¹ in the place of W, with G (m, n) the mean gradient of W at a token."""
    model = copy.deepcopy(trial.loaded.model)
    layers = trial.targets_of(model).layers
    train_only(model, frozenset(f"{name}.weight" for name in layers))
    for batch in trial.batches(trial.config):
        cross_entropy_sum(model(**without_labels(batch)).logits, batch["labels"]).backward()
    for name, seen in trial.statistics(trial.config, whole=True).items():
        layer = cast(nn.Linear, layers[name])
        assert layer.weight.grad is not None
        gradient = layer.weight.grad.double() / seen.gradients.tokens
        outputs, inputs = (
            Metric.of(moments.shrunk(trial.config.shrinkage)[0], trial.config.covariance_floor).lower
            for moments in (seen.gradients, seen.inputs)
        )
        step = torch.cholesky_solve(torch.cholesky_solve(gradient, outputs).T, inputs).T
        layer.weight.data.sub_((rate * step).float())
        layer.weight.grad = None
    return trial.tuned(trial.config, *trial.compressed(trial.config, model))


def taught(trial: Trial, share: float, tuned: bool) -> PreTrainedModel:
    """Finetune the cores on (1 − share) · cross-entropy + share · divergence from a teacher's answers.

    The teacher is the dense model with its head tuned, or, `tuned`, the same with every layer's core finetuned too.
    """
    teacher = trial.loaded.model
    if tuned:
        teacher, _ = trial.compressed(trial.config.model_copy(update={"budgets": (1.0,)}))
        finetune_cores(teacher, trial.loaded.head, trial.train, trial.config, lambda done: None)
    teacher.eval()

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        answers = model(**without_labels(batch)).logits
        with torch.no_grad():
            wanted = teacher(**without_labels(batch)).logits
        apart = divergence(answers / TEMPERATURE, wanted / TEMPERATURE) * TEMPERATURE**2
        return (1 - share) * cross_entropy_sum(answers, batch["labels"]) / len(answers) + share * apart

    return trial.tuned(trial.config, *trial.compressed(trial.config), loss)


def reallocated(trial: Trial, first_budget: float, share: float, recalibrated: bool) -> PreTrainedModel:
    """Finetune a larger model for a `share` of the steps, decompose what came out of it, and finetune the rest.

    The second decomposition takes the covariances of the first, or, `recalibrated`, those of the model half way.
    """
    first = trial.config.model_copy(update={"budgets": (first_budget,), "epochs": trial.config.epochs * share})
    second = trial.config.model_copy(update={"epochs": trial.config.epochs * (1 - share)})
    model, _ = trial.compressed(first)
    finetune_cores(model, trial.loaded.head, trial.train, first, lambda done: None)
    fold_cores(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LowRankLinear):
            model.set_submodule(name, multiplied(layer, transposed=False))
    statistics = trial.calibrate(model, second) if recalibrated else None
    return trial.tuned(second, *trial.compressed(second, model, statistics))


LEVERS: Mapping[str, Callable[[Trial], PreTrainedModel]] = {
    "lever: natural gradient at 0.0003": lambda trial: natural_gradient(trial, 3e-4),
    "lever: natural gradient at 0.003": lambda trial: natural_gradient(trial, 3e-3),
    "lever: taught by the dense model": lambda trial: taught(trial, 0.5, tuned=False),
    "lever: taught by the model tuned at budget 1": lambda trial: taught(trial, 0.5, tuned=True),
    "lever: reallocated at half time, from budget 0.7": lambda trial: reallocated(trial, 0.7, 0.5, recalibrated=False),
    "lever: reallocated and recalibrated at half time": lambda trial: reallocated(trial, 1.0, 0.5, recalibrated=True),
}
