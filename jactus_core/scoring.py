"""A finished checkpoint on other rows of its task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer

import jactus_core  # noqa: F401 - teaches transformers the checkpoint's model type
from jactus_core.config import CompressionConfig
from jactus_core.encoding import encode
from jactus_core.errors import ModelNotFound, UnknownLabel
from jactus_core.evaluation import Metrics, evaluate
from jactus_core.examples import Examples, read_examples
from jactus_core.loading import Loaded, body_name, device_of
from jactus_core.reporting import REPORT_FILE
from jactus_core.tasks import TASKS


def read_report(folder: str | Path) -> dict[str, Any]:
    """How a checkpoint was made; raises ModelNotFound where the folder is none of ours."""
    file = Path(folder) / REPORT_FILE
    if not file.is_file():
        raise ModelNotFound(
            f"'{folder}' has no {REPORT_FILE}; name a checkpoint's folder, such as budget-0.8.", "folder"
        )
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def score(
    folder: str | Path,
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    report: Callable[[float], None] | None = None,
) -> Metrics:
    """The metrics of `evaluation.evaluate` for the checkpoint in `folder`, made by `compress`.

    On the evaluation split of `data`, or on all of its rows where it has none; prompts and lengths are those that the
    checkpoint was made with. Raises ModelNotFound, or InvalidDataset, as UnknownLabel for a class that the checkpoint
    does not know.
    """
    config = CompressionConfig.model_validate_json(json.dumps(read_report(folder)["config"]))
    task = TASKS[config.task]
    rows, apart = read_examples(data, config.task, columns)
    kind = AutoImageProcessor if task.reads_images else AutoTokenizer
    model = getattr(transformers, task.auto_class).from_pretrained(folder, use_safetensors=True, dtype=config.dtype)
    loaded = Loaded(model.to(device_of(device)), kind.from_pretrained(folder), body_name(model))
    examples = (
        _in_its_order(apart or rows, [*model.config.id2label.values()]) if task.is_classification else apart or rows
    )
    return evaluate(model, encode(examples, loaded, config, scoring=True), config.task, batch_size, report)


def _in_its_order(examples: Examples, names: list[str]) -> Examples:
    """The same with classes numbered as the checkpoint does."""
    strangers = [name for name, rows in examples.counts().items() if rows and name not in names]
    if strangers:
        raise UnknownLabel(f"The checkpoint has no class '{strangers[0]}'; it has {', '.join(names[:10])}.", "data")
    numbers = [names.index(name) if name in names else -1 for name in examples.label_names]
    return Examples(examples.task, examples.items, [numbers[label] for label in examples.labels], names)
