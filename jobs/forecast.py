"""What a job costs in time and disk, guessed from the sizes of its model and of its dataset."""

from __future__ import annotations

from jactus_core.config import CompressionConfig
from jactus_core.tasks import TASKS
from jobs.classes import FLOPS, DeviceClass
from jobs.schemas import JobCreate, ModelEstimate, SecondsRange
from jobs.tables import Dataset

FORWARD_FLOPS, TRAINING_FLOPS = 2, 6
"""Per parameter and token."""
SHORT_ROWS = 1 / 8
"""How long texts may be on average, of the longest that is kept."""
START_SECONDS = (3.0, 60.0)
"""Importing, downloading a small model, checking each checkpoint in a process of its own."""


def seconds(found: ModelEstimate, config: CompressionConfig, dataset: Dataset, device: DeviceClass) -> SecondsRange:
    """From short rows at full speed to long rows on a slow device."""
    held_out = dataset.eval_rows or int(dataset.rows * config.eval_fraction)
    train = dataset.rows if dataset.eval_rows else dataset.rows - held_out
    forward = held_out * (1 + len(config.budgets))
    if TASKS[config.task].is_classification:
        forward += min(config.warmup_samples, train)
    if config.repairs:  # by what a teacher makes of the same rows
        forward += int(train * config.core_epochs) * len(config.budgets)
    trained = min(config.calibration_samples, train) * found.calibration_passes
    trained += int(train * config.adapter_epochs) + int(train * config.core_epochs) * len(config.budgets)
    per_token = found.parameters * (FORWARD_FLOPS * forward + TRAINING_FLOPS * trained)
    shortest = 1.0 if TASKS[config.task].reads_images else SHORT_ROWS
    slow, fast = FLOPS[device]
    low, high = (
        start + (found.decomposition_flops + per_token * found.row_tokens * share) / speed
        for start, share, speed in zip(START_SECONDS, (shortest, 1.0), (fast, slow), strict=True)
    )
    return SecondsRange(low=round(low, 1), high=round(high, 1))


def disk_bytes(found: ModelEstimate, request: JobCreate, dataset: Dataset, model_bytes: int) -> int:
    """In the work folder: the dataset, the model where it is copied, and every form of every checkpoint."""
    dense = found.bytes * len(found.budgets) if "dense" in request.outputs else 0
    onnx = sum(point.bytes for point in found.budgets) if "onnx" in request.outputs else 0
    return dataset.bytes + model_bytes + found.disk_bytes + dense + onnx
