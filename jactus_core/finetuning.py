"""Step 5, finetune: first the head on the frozen body, later the cores and the head together."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
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
from jactus_core.errors import NonFiniteLoss
from jactus_core.layers import CoreLinear, train_only
from jactus_core.tokenized import TokenizedTexts, to_device

HEAD_RATE = 1e-2
HEAD_BATCH = 64
WARMUP_SHARE = 0.06
"""Share of the steps over which the learning rate rises."""
WARMUP_FORWARD_SHARE = 0.8
"""Share of the head's warm-up time that the body's single forward pass takes."""


def warm_up_head(
    model: PreTrainedModel,
    head: frozenset[str],
    data: TokenizedTexts,
    config: CompressionConfig,
    report: Callable[[float], None],
) -> None:
    """Train a new head alone: gradients through a random head say little about the task.

    The body is frozen, so it runs once over `warmup_samples` rows and the epochs replay its outputs. Parameters of
    the head that lie inside the body, such as a new pooler, wait for `finetune_cores`.
    """
    prefix = model.base_model_prefix + "."
    train_only(model, frozenset(name for name in head if not name.startswith(prefix)))
    batches = _batches_with_body_outputs(model, data, config, lambda done: report(WARMUP_FORWARD_SHARE * done))
    steps = config.warmup_epochs * len(batches)
    optimizer, schedule = _optimizer(model, HEAD_RATE, steps)
    order = random.Random(config.seed)
    body = model.base_model
    body_forward = body.forward
    try:
        for step in range(steps):
            if step % len(batches) == 0:
                order.shuffle(batches)
            batch, outputs = batches[step % len(batches)]
            body.forward = lambda *args, **kwargs: outputs  # noqa: B023 - called before the loop moves on
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


def _batches_with_body_outputs(
    model: PreTrainedModel, data: TokenizedTexts, config: CompressionConfig, report: Callable[[float], None]
) -> list[tuple[dict[str, Tensor], Any]]:
    model.eval()
    total = math.ceil(min(len(data), config.warmup_samples) / HEAD_BATCH)
    found = []
    for batch in islice(data.batches(HEAD_BATCH, seed=config.seed), total):
        batch = to_device(batch, model.device)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with torch.no_grad():
            found.append((batch, model.base_model(**inputs)))
        report(len(found) / total)
    return found


def finetune_cores(
    model: PreTrainedModel,
    head: frozenset[str],
    data: TokenizedTexts,
    config: CompressionConfig,
    report: Callable[[float], None],
) -> None:
    """Train the cores that `install_cores` put in, and the head. Raises NonFiniteLoss naming the step."""
    cores = {f"{name}.core" for name, module in model.named_modules() if isinstance(module, CoreLinear)}
    train_only(model, head | cores)
    set_seed(config.seed)
    steps = max(1, math.ceil(config.epochs * len(data) / config.batch_size))
    optimizer, schedule = _optimizer(model, config.learning_rate, steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            train_sampling_strategy="group_by_length",
            seed=config.seed,
            save_strategy="no",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=data.collate,
            optimizers=(optimizer, schedule),
            callbacks=[_Watch(report)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()


def _optimizer(model: PreTrainedModel, rate: float, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW on what is trainable, with a linear warm-up and cosine decay over `steps`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, math.ceil(steps * WARMUP_SHARE), steps)


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
