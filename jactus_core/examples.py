"""Checked examples of a task, made of rows from anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from jactus_core.errors import EmptyDataset, InvalidDataset, MissingColumn, OneClassDataset, UnknownLabel
from jactus_core.pictures import Picture as Picture
from jactus_core.sources import UNUSABLE, PlacedRow, Rows, open_source
from jactus_core.tasks import TASKS, Task, TaskName

MAX_CLASSES = 1000
MAX_LABEL_CHARACTERS = 256
FAULTS_TOLD = 5
FAULTS_CHARACTERS = 450  # of the message that tells them, which a service may cut at 500
DECODED_AT_ONCE = 256  # images handed to the threads that check them
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NUMBER = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True)
class Question:
    """A question with its possible answers."""

    question: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Passage:
    """A text to learn to write; the prompt before it is read, not learned."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Examples:
    """Items of a task with what is to be predicted of them."""

    task: TaskName
    items: list[Any]  # str, Picture, Passage or Question
    labels: list[int]  # a class, the right choice of a question, or 0
    label_names: list[str]  # of the classes; empty where the task has none

    def __len__(self) -> int:
        return len(self.items)

    def select(self, rows: Iterable[int]) -> Examples:
        picked = list(rows)
        return Examples(self.task, [self.items[i] for i in picked], [self.labels[i] for i in picked], self.label_names)

    def counts(self) -> dict[str, int]:
        """Rows per class, in the order of `label_names`."""
        tally = Counter(self.labels)
        return {name: tally[index] for index, name in enumerate(self.label_names)}

    def fingerprint(self) -> str:
        """Hex digest that changes with any item, label or class name, and with the order."""
        digest = hashlib.sha256(json.dumps([self.task, self.label_names]).encode())
        for item, label in zip(self.items, self.labels, strict=True):
            content = item if isinstance(item, str) else item.sha256() if isinstance(item, Picture) else asdict(item)
            digest.update(json.dumps([content, label]).encode())
        return digest.hexdigest()


def read_examples(
    source: Any, task: TaskName, columns: Mapping[str, str] | None = None, revision: str | None = None
) -> tuple[Examples, Examples | None]:
    """Read and check all of a source, or of what `open_source` takes: rows to train on, and to evaluate on if any.

    `columns` names the columns of the task's roles where they are not called like the role. Raises InvalidDataset or
    one of its kinds, whose message names the place, or the first places where there are several.
    """
    opened = open_source(source, revision)
    reader = _Reader(TASKS[task], columns or {}, opened.folders)
    train = _checked(reader, opened.train, "The dataset has no rows.")
    label_names = reader.class_names([label for _, _, label in train]) if reader.task.is_classification else []
    found = _examples(task, train, label_names)
    if opened.evaluation is None:
        return found, None
    evaluation = _checked(reader, opened.evaluation, "The dataset has no rows in its split for evaluation.")
    return found, _examples(task, evaluation, label_names)


def split(examples: Examples, eval_fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Reproducible split into train and eval, the same share of each class; a class of one row stays in train."""
    generator = random.Random(seed)
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(examples.labels):
        by_class.setdefault(label if examples.label_names else 0, []).append(row)
    held_out: set[int] = set()
    for rows in by_class.values():
        generator.shuffle(rows)
        wanted = max(1, round(len(rows) * eval_fraction))
        held_out.update(rows[: min(wanted, len(rows) - 1)])
    if not held_out:
        few = "No class has two rows" if examples.label_names else "There are not two rows"
        raise InvalidDataset(f"{few}, so nothing can be held out for evaluation; add rows.", "file")
    everything = range(len(examples))
    return examples.select(i for i in everything if i not in held_out), examples.select(sorted(held_out))


_Checked = tuple[str, Any, str | int]  # place, item, class name or index of the right choice


class _Reader:
    """Takes rows apart by the roles of a task."""

    def __init__(self, task: Task, columns: Mapping[str, str], folders: Iterable[Path] | None) -> None:
        roles = (*task.roles, *task.optional_roles)
        for role in columns:
            if role not in roles:
                raise InvalidDataset(
                    f"'{role}' is nothing that {task.name} reads; name the columns of {', '.join(roles)}.", "columns"
                )
        self.task = task
        self.columns = {role: columns.get(role, role) for role in roles}
        self.folders = None if folders is None else [folder.resolve() for folder in folders]
        self._required = {*task.roles, *columns}

    def read(self, row: PlacedRow | InvalidDataset) -> _Checked:
        if isinstance(row, InvalidDataset):
            raise row
        return row.place, *self._item_and_label(row)

    def _item_and_label(self, row: PlacedRow) -> tuple[Any, str | int]:
        match self.task.name:
            case "text-classification":
                return self._text(row, "text"), self._label(row)
            case "image-classification":
                return self._picture(row), self._label(row)
            case "text-generation":
                return Passage(self._prompt(row), self._text(row, "text")), 0
            case "multiple-choice":
                return self._question(row)

    def class_names(self, labels: Sequence[str | int]) -> list[str]:
        """The classes in order: numbers by value, anything else by alphabet."""
        names = sorted({str(label) for label in labels}, key=_rank)
        if len(names) < 2:
            raise OneClassDataset(
                f"All {len(labels)} rows have the label '{names[0]}'; a classifier needs two.", "file"
            )
        if len(names) > MAX_CLASSES:
            raise InvalidDataset(
                f"Column '{self.columns['label']}' holds {len(names)} different values, more than {MAX_CLASSES} "
                "classes.",
                "columns.label",
            )
        return names

    def _cell(self, row: PlacedRow, role: str) -> Any:
        column = self.columns[role]
        if column not in row.cells:
            if role not in self._required:
                return None
            raise MissingColumn(
                f"{row.place} has no column '{column}'; the columns are {_listing(row.cells)}.", f"columns.{role}"
            )
        return row.cells[column]

    def _refuse(self, row: PlacedRow, role: str, wanted: str) -> InvalidDataset:
        column = self.columns[role]
        return InvalidDataset(f"{row.place}: column '{column}' must hold {wanted}.", column)

    def _text(self, row: PlacedRow, role: str) -> str:
        text = self._cell(row, role)
        if not isinstance(text, str) or not text.strip():
            raise self._refuse(row, role, "a non-empty text")
        return self._usable(row, role, text)

    def _usable(self, row: PlacedRow, role: str, text: str) -> str:
        if UNUSABLE.search(text):
            raise self._refuse(row, role, "a text without null characters")
        return text

    def _prompt(self, row: PlacedRow) -> str:
        prompt = self._cell(row, "prompt")
        if prompt is not None and not isinstance(prompt, str):
            raise self._refuse(row, "prompt", "a text")
        return self._usable(row, "prompt", prompt or "")

    def _label(self, row: PlacedRow) -> str:
        label = self._cell(row, "label")
        if label is None or isinstance(label, (dict, list)) or not str(label).strip():
            raise self._refuse(row, "label", "a label")
        name = str(label).strip()
        if len(name) > MAX_LABEL_CHARACTERS:
            raise self._refuse(row, "label", f"a label of at most {MAX_LABEL_CHARACTERS} characters")
        return self._usable(row, "label", name)

    def _picture(self, row: PlacedRow) -> Picture:
        content = self._cell(row, "image")
        path = content if isinstance(content, str) else None
        if isinstance(content, Mapping):  # as datasets stores images
            path = content.get("path")
            content = path if content.get("bytes") is None else content["bytes"]
        if isinstance(content, (str, Path)) and str(content):
            content = self._inside(row, content)
        if isinstance(content, Picture):
            return content
        if not isinstance(content, (bytes, Path)) and not _is_pil(content):
            raise self._refuse(row, "image", "an image: a path, the bytes of a file, or a PIL image")
        name = row.place[0].lower() + row.place[1:]
        return Picture(f"{name} ({path})" if path else name, content)

    def _inside(self, row: PlacedRow, path: str | Path) -> Path:
        """The file that a cell names."""
        if self.folders is None:
            return Path(path)
        for folder in self.folders if "\0" not in str(path) else ():
            if (file := (folder / path).resolve()).is_relative_to(folder):
                return file
        raise self._refuse(row, "image", f"a path inside the folder of the data file, not '{path}'")

    def _question(self, row: PlacedRow) -> tuple[Question, int]:
        question = self._text(row, "question")
        choices = self._cell(row, "choices")
        names = None
        if isinstance(choices, Mapping):  # as the hub's ARC and CommonsenseQA have them
            names = choices.get("label")
            choices = choices.get("text")
            if not isinstance(names, list) or not isinstance(choices, list) or len(names) != len(choices):
                raise self._refuse(row, "choices", "as many entries in 'text' as in 'label'")
        if (
            not isinstance(choices, (list, tuple))
            or len(choices) < 2
            or not all(isinstance(choice, str) and choice.strip() for choice in choices)
        ):
            raise self._refuse(row, "choices", "a list of at least two non-empty texts")
        for choice in choices:
            self._usable(row, "choices", choice)
        return Question(question, tuple(choices)), self._answer(row, choices, names)

    def _answer(self, row: PlacedRow, choices: Sequence[str], names: Sequence[Any] | None) -> int:
        """Index of the right choice; the row's own names of the choices go before anything else."""
        answer = self._cell(row, "answer")
        if isinstance(answer, (int, str)) and not isinstance(answer, bool):
            named = [i for i, name in enumerate(names or ()) if name == answer]
            if len(named) == 1:
                return named[0]
            if isinstance(answer, int) and 0 <= answer < len(choices):
                return answer
            letters = LETTERS if names is None else ""
            meant = [i for i, choice in enumerate(choices) if answer and answer in (choice, letters[i : i + 1])]
            if len(meant) == 1:
                return meant[0]
        raise self._refuse(
            row, "answer", f"the index (0 to {len(choices) - 1}), the letter or the text of one choice, not {answer!r}"
        )


class _Faults:
    """Collects what is wrong with single rows; `with` it, each block ends at its first fault."""

    def __init__(self) -> None:
        self._first: list[InvalidDataset] = []
        self._more = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if not isinstance(error, InvalidDataset):
            return False
        if len(self._first) < FAULTS_TOLD:
            self._first.append(error)
        else:
            self._more += 1
        return True

    def tell(self) -> None:
        """Raise the only fault, or one error like the first that tells the first ones in whole sentences."""
        if not self._first:
            return
        first, *others = self._first
        if not others:
            raise first
        told = [first.message]
        for fault in others:
            if len(" ".join([*told, fault.message])) <= FAULTS_CHARACTERS:
                told.append(fault.message)
        more = self._more + len(self._first) - len(told)
        raise type(first)(" ".join([*told, f"And {more:,} more."] if more else told), first.param) from first


def _checked(reader: _Reader, rows: Iterable[PlacedRow], empty: str) -> list[_Checked]:
    checked: list[_Checked] = []
    faults = _Faults()
    with faults:
        for row in rows.read() if isinstance(rows, Rows) else rows:
            with faults:
                checked.append(reader.read(row))
    faults.tell()
    if not checked:
        raise EmptyDataset(empty, "file")
    return checked


def _examples(task: TaskName, rows: Sequence[_Checked], label_names: list[str]) -> Examples:
    """Turn class names into indices, and decode every image once so that a broken one is found now."""
    index = {name: i for i, name in enumerate(label_names)}
    labels = []
    faults = _Faults()
    for place, _, label in rows:
        with faults:
            if isinstance(label, str) and label not in index:
                raise UnknownLabel(
                    f"{place}: the training rows have no label '{label}'; they have {_listing(label_names)}.", "file"
                )
            labels.append(index[label] if isinstance(label, str) else label)
    faults.tell()
    items = [item for _, item, _ in rows]
    if TASKS[task].reads_images:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(items), DECODED_AT_ONCE):
                for fault in pool.map(_fault_of, items[start : start + DECODED_AT_ONCE]):
                    with faults:
                        if fault is not None:
                            raise fault
        faults.tell()
    return Examples(task, items, labels, label_names)


def _fault_of(picture: Picture) -> InvalidDataset | None:
    try:
        picture.open()
    except InvalidDataset as fault:
        return fault
    return None


def _is_pil(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _rank(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if NUMBER.fullmatch(name) else (1, 0, name)


def _listing(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in islice(names, 20)) or "none"
