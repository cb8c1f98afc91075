"""What is trained and when: a new head or adapters before the calibration; step 5, finetune: the cores and the head."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from jactus_core.config import CompressionConfig
from jactus_core.distributed import ALONE, Processes
from jactus_core.encoding import Encoded, to_device
from jactus_core.errors import NonFiniteLoss
from jactus_core.layers import AdaptedLinear, CoreLinear, adapter_names, lost_share, train_only
from jactus_core.loading import Loaded
from jactus_core.losses import apart, cross_entropy_sum, divergence, without_labels
from jactus_core.precision import fast_bfloat16
from jactus_core.tasks import Task

Loss = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""Of a model on a batch: scalar, a mean over what counts."""

HEAD_RATE = 1e-2
HEAD_BATCH = 64
HEAD_CACHE_BYTES = 2**30
"""Outputs of the body kept for the head's warm-up; fewer rows are used when they would take more."""
WARMUP_SHARE = 0.06
"""Share of the steps over which the learning rate rises."""
WARMUP_FORWARD_SHARE = 0.8
"""Share of the head's warm-up time that the body's single forward pass takes."""
FULL_RATE_RANK = 96
"""The largest rank of a core that is trained at the full rate."""
FALL = 0.5
"""The power of the rank by which the rate falls beyond that."""
ZERO_RATE = 3.0
"""Of adapters that start at zero, relative to the rate of cores."""
PRINCIPAL_RATE = 8.0
"""Of adapters that start at a weight's leading directions: the same, times the root mean square of their entries."""
STATES_WEIGHT = 30.0
"""Of a classifier's relative error in hidden states, beside its cross-entropy."""


def warm_up_head(loaded: Loaded, data: Encoded, config: CompressionConfig, report: Callable[[float], None]) -> None:
    """Train a new head alone: gradients through a random head say little about the task.

    The body is frozen, so it runs once over `warmup_samples` rows and the epochs replay its outputs. Parameters of
    the head that lie inside the body, such as a new pooler, wait for `finetune_cores`.
    """
    model = loaded.model
    batches = _batches_with_body_outputs(loaded, data, config, lambda done: report(WARMUP_FORWARD_SHARE * done))
    train_only(model, frozenset(name for name in loaded.head if not name.startswith(f"{loaded.body}.")))
    steps = config.warmup_epochs * len(batches)
    dtype = model.dtype
    optimizer, schedule = _optimizer(model, HEAD_RATE, steps)
    order = random.Random(config.seed)
    body = model.get_submodule(loaded.body)
    body_forward = body.forward
    try:
        with fast_bfloat16(model):
            for step in range(steps):
                if step % len(batches) == 0:
                    order.shuffle(batches)
                batch, outputs = batches[step % len(batches)]
                body.forward = lambda *args, **kwargs: outputs  # noqa: B023 - called before the loop moves on
                with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                    loss = model(**batch).loss
                if not torch.isfinite(loss):
                    raise NonFiniteLoss(f"The loss is {loss.item()} at warm-up step {step + 1} of the task head.")
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                report(WARMUP_FORWARD_SHARE + (1 - WARMUP_FORWARD_SHARE) * (step + 1) / steps)
    finally:
        body.forward = body_forward
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)


def _batches_with_body_outputs(
    loaded: Loaded, data: Encoded, config: CompressionConfig, report: Callable[[float], None]
) -> list[tuple[dict[str, Any], Any]]:
    """Batches with what the body makes of them, as the model calls it."""
    model = loaded.model.eval()
    body = model.get_submodule(loaded.body)
    outputs: list[Any] = []
    handle = body.register_forward_hook(lambda _, args, output: outputs.append(output))
    total = math.ceil(min(len(data), config.warmup_samples) / HEAD_BATCH)
    found: list[tuple[dict[str, Any], Any]] = []
    room = HEAD_CACHE_BYTES
    try:
        with torch.no_grad(), fast_bfloat16(model):
            for batch in islice(data.batches(HEAD_BATCH, data.order(seed=config.seed)), total):
                batch = to_device(batch, model.device)
                model(**without_labels(batch))
                found.append((batch, outputs.pop()))
                room -= sum(value.nbytes for value in found[-1][1].values() if isinstance(value, Tensor))
                report(len(found) / total)
                if room < 0:
                    break
    finally:
        handle.remove()
    return found


def tune_adapters(
    model: PreTrainedModel,
    head: frozenset[str],
    data: Encoded,
    config: CompressionConfig,
    report: Callable[[float], None],
    processes: Processes = ALONE,
) -> None:
    """Train the installed adapters and the head: before, a language model's gradients are about form, not the task.

    Raises NonFiniteLoss naming the step.
    """
    dtype = model.dtype
    train_only(model, head | adapter_names(model))
    fit(model, data, config.model_copy(update={"epochs": config.adapter_epochs}), report, processes)
    for name in head:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.to(dtype)


def finetune_cores(
    model: PreTrainedModel,
    head: frozenset[str],
    data: Encoded,
    config: CompressionConfig,
    report: Callable[[float], None],
    processes: Processes = ALONE,
    loss: Loss | None = None,
) -> None:
    """Train what `config.trained` says of a model with cores installed, and the head; by the labels if not by a `loss`.

    Of a model that was tuned before no more is to be learnt than what the compression took away: the rate is that share
    of `learning_rate`. Raises NonFiniteLoss naming the step.
    """
    train_only(model, head | _trained_names(model, config.trained))
    to_learn = lost_share(model) if config.adapter_epochs else 1.0
    changes = {"epochs": config.core_epochs, "learning_rate": to_learn * config.learning_rate}
    fit(model, data, config.model_copy(update=changes), report, processes, loss)


def repair(teacher: PreTrainedModel, task: Task) -> Loss:
    """The loss by which a compressed model comes back to the dense one that was tuned."""
    return states_of(teacher) if task.is_classification else answers_of(teacher)


def answers_of(teacher: PreTrainedModel) -> Loss:
    """The loss by which a language model comes to answer like its teacher at every token; no label is read."""

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        real, inputs = batch["attention_mask"].bool(), without_labels(batch)
        with torch.no_grad():
            wanted = teacher(**inputs).logits[real]
        return divergence(model(**inputs).logits[real], wanted)

    return loss


def states_of(teacher: PreTrainedModel) -> Loss:
    """The loss by which a classifier learns its labels and stays with its teacher's hidden states.

    A label says little about a row, and next to nothing where the adapters have learnt it already.
    """

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        inputs, mask = without_labels(batch), batch.get("attention_mask")
        with torch.no_grad():
            wanted = _states(teacher(**inputs, output_hidden_states=True))
        output = model(**inputs, output_hidden_states=True)
        errors = [apart(mine, theirs, mask) for mine, theirs in zip(_states(output), wanted, strict=True)]
        by_labels = cross_entropy_sum(output.logits, batch["labels"]) / len(batch["labels"])
        return by_labels + STATES_WEIGHT * sum(errors, torch.zeros_like(by_labels)) / max(len(errors), 1)

    return loss


def _states(output: Mapping[str, Any]) -> list[Tensor]:
    """Behind every block, of the encoder and the decoder where there are two; none of a model that hides them."""
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return [state for name in names for state in (output.get(name) or ())[1:]]


def fit(
    model: PreTrainedModel,
    data: Encoded,
    config: CompressionConfig,
    report: Callable[[float], None],
    processes: Processes = ALONE,
    loss: Loss | None = None,
) -> None:
    """Train every parameter that requires a gradient for `config.epochs`; raises NonFiniteLoss naming the step."""
    set_seed(config.seed)
    use_cache = getattr(model.config, "use_cache", None)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    steps = max(1, math.ceil(config.epochs * len(data) / config.batch_size))
    optimizer, schedule = _optimizer(model, config.learning_rate, steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=max(config.batch_size // processes.count, 1),
            ddp_find_unused_parameters=True,
            train_sampling_strategy="group_by_length" if data.are_texts else "random",
            seed=config.seed,
            save_strategy="no",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            bf16=config.dtype == "bfloat16",
            remove_unused_columns=False,
        )
        trainer = _Trainer(
            loss,
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=data.collate,
            optimizers=(optimizer, schedule),
            callbacks=[_Watch(report)],
        )
        trainer.remove_callback(PrinterCallback)
        with fast_bfloat16(model):
            trainer.train()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    if use_cache is not None:
        model.config.use_cache = use_cache  # the trainer switches it off
    for leftover in ("forward", "_original_forward", "_is_accelerate_prepared"):  # or no next training is prepared
        model.__dict__.pop(leftover, None)
    model.eval()


def _trained_names(model: PreTrainedModel, trained: str) -> frozenset[str]:
    """Names of the parameters of the body to train."""
    names = {f"{name}.core" for name, module in model.named_modules() if isinstance(module, CoreLinear)}
    if trained == "core+norms":
        names |= {name for name, parameter in model.named_parameters() if parameter.dim() == 1}
    if trained == "factors":
        names |= {
            f"{name}.{factor}"
            for name, module in model.named_modules()
            if isinstance(module, CoreLinear) and module.base is None
            for factor in ("up", "down")
        }
    return frozenset(names)


def _optimizer(model: PreTrainedModel, rate: float, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW on what is trainable, with a linear warm-up and cosine decay over `steps`.

    Adam moves every entry by about its rate. The values of cores are 1 on average, but what r entries of a row do adds
    up, so beyond a rank of `FULL_RATE_RANK` a core's rate falls by the power `FALL` of the rank. The entries of a
    whitened factor may all be tiny: its rate is relative to their root mean square.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: list[dict[str, Any]] = [
        {"params": [trained.pop(name)], "lr": rate * _relative_rate(module, part)}
        for layer, module in model.named_modules()
        if isinstance(module, CoreLinear | AdaptedLinear)
        for part in ("core", "up", "down")
        if (name := f"{layer}.{part}") in trained
    ]
    groups.append({"params": list(trained.values())})
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, math.ceil(steps * WARMUP_SHARE), steps)


def _relative_rate(layer: CoreLinear | AdaptedLinear, part: str) -> float:
    """Of one part of a layer with a core or an adapter."""
    parameter = layer.get_parameter(part).detach()
    if part == "core":
        return float(min(FULL_RATE_RANK / len(parameter), 1.0) ** FALL)
    size = float(parameter.square().mean().sqrt())
    if isinstance(layer, CoreLinear):
        return size
    return PRINCIPAL_RATE * size if layer.principal else ZERO_RATE


class _Trainer(Trainer):
    """Takes a loss of the caller's, or the cross-entropy of the labels, of which no more logits are kept than count."""

    def __init__(self, loss: Loss | None, **arguments: Any) -> None:
        super().__init__(compute_loss_func=_mean_cross_entropy, **arguments)
        self.loss = loss

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        if self.loss is None:
            return super().compute_loss(model, inputs, *arguments, **options)
        return self.loss(model, inputs)


def _mean_cross_entropy(output: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """Over the labels that count in the batches of all processes."""
    return cross_entropy_sum(output.logits, labels) / num_items_in_batch


class _Watch(TrainerCallback):
    """Reports progress and stops at the first loss that is not a number."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(state.global_step / state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise NonFiniteLoss(
                f"The loss is {loss} at finetuning step {state.global_step}; lower learning_rate.", "learning_rate"
            )
