"""Labelled texts: reading CSV and JSON lines, checking them, splitting them."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

from jactus_core.errors import InvalidDataset, MissingColumn, OneClassDataset

Format = Literal["csv", "jsonl"]
FORMATS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
MAX_CLASSES = 1000
MAX_FIELD_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class LabelledTexts:
    """Rows of a text classification set; `labels[i]` indexes `label_names`."""

    texts: list[str]
    labels: list[int]
    label_names: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Iterable[int]) -> LabelledTexts:
        picked = list(rows)
        return LabelledTexts([self.texts[i] for i in picked], [self.labels[i] for i in picked], self.label_names)

    def counts(self) -> dict[str, int]:
        """Rows per class, in the order of `label_names`."""
        tally = Counter(self.labels)
        return {name: tally[index] for index, name in enumerate(self.label_names)}


def format_of(filename: str) -> Format:
    """The format a file name stands for; raises InvalidDataset for any other ending."""
    suffix = Path(filename).suffix.lower()
    if suffix not in FORMATS:
        raise InvalidDataset(f"'{filename}' is not a dataset file: the name must end in {', '.join(FORMATS)}.", "file")
    return FORMATS[suffix]


def read_texts(path: Path, format: Format, text_column: str = "text", label_column: str = "label") -> LabelledTexts:
    """Read and check a whole file.

    Raises InvalidDataset (unreadable, empty, a row without text or label), MissingColumn or OneClassDataset; the
    message names the row as an editor counts lines (the CSV header is row 1).
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = _csv_rows(handle) if format == "csv" else _json_rows(handle)
            return from_rows(rows, text_column, label_column)
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"The file is not UTF-8 text (byte {error.start}); save it as UTF-8.", "file") from error
    except csv.Error as error:
        raise InvalidDataset(f"The file is not valid CSV: {error}.", "file") from error


def from_rows(rows: Iterable[tuple[int, dict[str, Any]]], text_column: str, label_column: str) -> LabelledTexts:
    """Build the set from numbered rows; see `read_texts` for the errors."""
    texts: list[str] = []
    names: list[str] = []
    for number, row in rows:
        for column, param in ((text_column, "text_column"), (label_column, "label_column")):
            if column not in row:
                found = ", ".join(f"'{name}'" for name in islice(row, 20)) or "none"
                raise MissingColumn(f"Row {number} has no column '{column}'; the columns are {found}.", param)
        text, label = row[text_column], row[label_column]
        if not isinstance(text, str) or not text.strip():
            raise InvalidDataset(f"Row {number}: column '{text_column}' must hold a non-empty text.", text_column)
        if label is None or isinstance(label, (dict, list)) or not str(label).strip():
            raise InvalidDataset(f"Row {number}: column '{label_column}' must hold a label.", label_column)
        texts.append(text)
        names.append(str(label).strip())
    if not texts:
        raise InvalidDataset("The dataset has no rows.", "file")
    label_names = _ordered(set(names))
    if len(label_names) < 2:
        raise OneClassDataset(
            f"All {len(texts)} rows have the label '{label_names[0]}'; a classifier needs two.", "file"
        )
    if len(label_names) > MAX_CLASSES:
        raise InvalidDataset(
            f"Column '{label_column}' holds {len(label_names)} different values, more than {MAX_CLASSES} classes.",
            "label_column",
        )
    index = {name: i for i, name in enumerate(label_names)}
    return LabelledTexts(texts, [index[name] for name in names], label_names)


def split(data: LabelledTexts, eval_fraction: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Reproducible stratified split into train and eval; a class with a single row stays in train."""
    generator = random.Random(seed)
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(data.labels):
        by_class.setdefault(label, []).append(row)
    held_out: set[int] = set()
    for rows in by_class.values():
        generator.shuffle(rows)
        wanted = max(1, round(len(rows) * eval_fraction))
        held_out.update(rows[: min(wanted, len(rows) - 1)])
    if not held_out:
        raise InvalidDataset("No class has two rows, so nothing can be held out for evaluation; add rows.", "file")
    everything = range(len(data))
    return data.select(i for i in everything if i not in held_out), data.select(sorted(held_out))


def _ordered(names: Iterable[str]) -> list[str]:
    """Numbers by value, anything else by alphabet."""
    return sorted(names, key=lambda name: (0, int(name), "") if name.lstrip("-").isdecimal() else (1, 0, name))


def _csv_rows(handle: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    reader = csv.DictReader(handle, strict=True)
    for row in reader:
        if None in row:
            raise InvalidDataset(f"Row {reader.line_num} has more fields than the header.", "file")
        yield reader.line_num, row


def _json_rows(handle: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidDataset(f"Row {number} is not valid JSON: {error}.", "file") from error
        if not isinstance(row, dict):
            raise InvalidDataset(f'Row {number} must be a JSON object such as {{"text": …, "label": …}}.', "file")
        yield number, row


def as_texts(
    data: str | Path | Sequence[dict[str, Any]], text_column: str = "text", label_column: str = "label"
) -> LabelledTexts:
    """Accept what people have at hand: a path to CSV or JSON lines, or a list of dictionaries."""
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.is_file():
            raise InvalidDataset(f"There is no file '{path}'.", "data")
        return read_texts(path, format_of(path.name), text_column, label_column)
    return from_rows(enumerate(data, start=1), text_column, label_column)
