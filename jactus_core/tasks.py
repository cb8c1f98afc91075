"""The tasks a compression can be for, as a table. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

TaskName = Literal["text-classification", "image-classification", "text-generation", "multiple-choice"]


@dataclass(frozen=True)
class Task:
    """What is particular to a task; names are those of Hugging Face's pipelines and auto classes."""

    name: TaskName
    roles: tuple[str, ...]  # what a row must hold; a column has its role's name unless the user says otherwise
    optional_roles: tuple[str, ...]
    auto_class: str  # of transformers
    metric: str  # the one that stands for the task in the frontier
    higher_is_better: bool

    @property
    def is_classification(self) -> bool:
        return "label" in self.roles

    @property
    def reads_images(self) -> bool:
        return "image" in self.roles


TASKS: Mapping[TaskName, Task] = {
    task.name: task
    for task in (
        Task("text-classification", ("text", "label"), (), "AutoModelForSequenceClassification", "accuracy", True),
        Task("image-classification", ("image", "label"), (), "AutoModelForImageClassification", "accuracy", True),
        Task("text-generation", ("text",), ("prompt",), "AutoModelForCausalLM", "perplexity", False),
        Task("multiple-choice", ("question", "choices", "answer"), (), "AutoModelForCausalLM", "accuracy", True),
    )
}
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
