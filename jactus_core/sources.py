"""Where rows come from: files, image folders and zips of them, lists, and datasets of Hugging Face."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TextIO

import httpx2
from huggingface_hub.errors import HfHubHTTPError

from jactus_core.archives import list_members
from jactus_core.errors import DatasetNotFound, EmptyDataset, InvalidDataset
from jactus_core.models import HUB_ID
from jactus_core.pictures import SUFFIXES, Picture, Readable

Format = Literal["csv", "jsonl", "parquet", "zip"]
FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".zip": "zip",
}
EVALUATION_SPLITS = ("validation", "valid", "val", "dev", "test")
MAX_FIELD_CHARACTERS = 1_000_000
BATCH = 256  # rows of a columnar source held at a time


class PlacedRow(NamedTuple):
    """A row, and where it stands in words that begin a sentence."""

    place: str
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Rows to train on, and those to evaluate on where the source sets some apart."""

    train: Iterable[PlacedRow]
    evaluation: Iterable[PlacedRow] | None = None
    folder: Path | None = None  # paths in the cells lead to files of this folder; None: to any


@dataclass(frozen=True)
class _Rows:
    """Rows that are read anew at each iteration."""

    read: Callable[[], Iterator[PlacedRow]]

    def __iter__(self) -> Iterator[PlacedRow]:
        return self.read()


def format_of(filename: str) -> Format:
    """The format a file name stands for; raises InvalidDataset for any other ending."""
    suffix = Path(filename).suffix.lower()
    if suffix not in FORMATS:
        raise InvalidDataset(f"'{filename}' is not a dataset file: the name must end in {', '.join(FORMATS)}.", "file")
    return FORMATS[suffix]


def open_source(data: Any, revision: str | None = None) -> Source:
    """Accept what people have at hand.

    A path to a file or an image folder, a dataset's id on the hub (only there `revision` counts), a list of
    dictionaries, a `datasets.Dataset`, or a dictionary of splits such as a `datasets.DatasetDict`.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, str):
        if not Path(data).exists() and Path(data).suffix.lower() not in FORMATS:
            return _from_hub(data, revision)
        data = Path(data)
    if isinstance(data, Path):
        return _from_path(data)
    if isinstance(data, Mapping):
        return _from_splits(data)
    return Source(_rows_of(data))


def open_file(path: Path, format: Format) -> Source:
    """Rows of a file, whatever its name; tables are read, and found to be broken, row by row."""
    if format == "zip":
        return _from_images((PurePosixPath(member.name), member) for member in list_members(path))
    read = _parquet_rows if format == "parquet" else _csv_rows if format == "csv" else _json_rows
    return Source(_Rows(lambda: read(path)), folder=path.parent)


def _from_path(path: Path) -> Source:
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        return _from_images((PurePosixPath(file.relative_to(path).as_posix()), file) for file in files)
    if not path.is_file():
        raise DatasetNotFound(f"There is no file '{path}'.", "data")
    return open_file(path, format_of(path.name))


def _from_hub(name: str, revision: str | None) -> Source:
    if not HUB_ID.fullmatch(name):
        raise DatasetNotFound(f"There is no dataset '{name}': neither a file or folder nor a hub id.", "data")
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    at = f" at revision '{revision}'" if revision else ""
    try:
        if name in _PACKAGED_DATASETS_MODULES:  # `load_dataset("csv")` reads the current folder
            raise DatasetNotFoundError(f"'{name}' is a reader, not a dataset")
        return _from_splits(datasets.load_dataset(name, revision=revision))
    except DatasetNotFoundError as error:
        raise DatasetNotFound(
            f"There is no dataset '{name}'{at}, neither on this host nor on the hub; if it is private or gated, "
            "accept its terms there and give this host a token.",
            "data",
        ) from error
    except (ConnectionError, HfHubHTTPError, httpx2.TransportError) as error:
        raise DatasetNotFound(
            f"There is no dataset '{name}'{at} on this host, and the hub cannot be reached; "
            "check the connection, or give a path.",
            "data",
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise InvalidDataset(
            f"The dataset '{name}'{at} of the hub cannot be loaded: {_in_one_line(error)}.", "data"
        ) from error


def _from_splits(splits: Mapping[str, Any]) -> Source:
    train = "train" if "train" in splits or len(splits) != 1 else next(iter(splits))
    if train not in splits:
        found = ", ".join(f"'{name}'" for name in splits) or "none"
        raise InvalidDataset(f"The dataset has no split 'train'; its splits are {found}.", "data")
    evaluation = _evaluation_split(name for name in splits if name != train)
    return Source(
        _rows_of(splits[train], f" of '{train}'"),
        None if evaluation is None else _rows_of(splits[evaluation], f" of '{evaluation}'"),
    )


def _evaluation_split(names: Iterable[str]) -> str | None:
    there = set(names)
    return next((name for name in EVALUATION_SPLITS if name in there), None)


def _rows_of(rows: Any, where: str = "") -> _Rows:
    datasets = sys.modules.get("datasets")  # who has a Dataset has imported it
    if datasets is not None and isinstance(rows, datasets.Dataset):
        return _Rows(lambda: _dataset_rows(rows, where))
    if isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)):
        return _Rows(lambda: _listed_rows(rows, where))
    raise InvalidDataset(
        f"Rows{where} must be a list of dictionaries or a datasets.Dataset, not {type(rows).__name__}.", "data"
    )


def _listed_rows(rows: Sequence[Any], where: str) -> Iterator[PlacedRow]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InvalidDataset(f"Row {number}{where} must be a dictionary, not {type(row).__name__}.", "data")
        yield PlacedRow(f"Row {number}{where}", row)


def _dataset_rows(dataset: Any, where: str) -> Iterator[PlacedRow]:
    """Rows as stored (images as bytes and path, nothing decoded), but class names for their numbers."""
    from datasets import ClassLabel

    classes = {column: kind.names for column, kind in dataset.features.items() if isinstance(kind, ClassLabel)}
    number = 0
    for table in dataset.with_format("arrow").iter(BATCH):
        for row in table.to_pylist():
            number += 1
            for column, names in classes.items():
                label = row[column]  # -1 where the label is kept secret
                row[column] = names[label] if label is not None and 0 <= label < len(names) else None
            yield PlacedRow(f"Row {number}{where}", row)


def _csv_rows(path: Path) -> Iterator[PlacedRow]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(_utf8(handle), strict=True)
        try:
            for row in reader:
                if None in row:
                    raise InvalidDataset(f"Row {reader.line_num} has more fields than the header.", "file")
                yield PlacedRow(f"Row {reader.line_num}", row)
        except csv.Error as error:
            raise InvalidDataset(f"The file is not valid CSV: {error}.", "file") from error


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        for number, line in enumerate(_utf8(handle), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidDataset(f"Row {number} is not valid JSON: {error}.", "file") from error
            if not isinstance(row, dict):
                raise InvalidDataset(f'Row {number} must be a JSON object such as {{"text": …, "label": …}}.', "file")
            yield PlacedRow(f"Row {number}", row)


def _utf8(handle: TextIO) -> Iterator[str]:
    try:
        yield from handle
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"The file is not UTF-8 text (byte {error.start}); save it as UTF-8.", "file") from error


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield PlacedRow(f"Row {number}", row)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InvalidDataset(
            f"The file is not valid Parquet after row {number}: {_in_one_line(error)}.", "file"
        ) from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def _from_images(files: Iterable[tuple[PurePosixPath, Readable]]) -> Source:
    """Images of CLASS/…, or of train/CLASS/… with an evaluation split beside it; one folder around it all is fine."""
    images = sorted(((path, file) for path, file in files if _is_image(path)), key=lambda image: image[0].parts)
    depth = _depth_of_classes([path for path, _ in images])
    by_top: dict[str, list[tuple[PurePosixPath, Readable]]] = {}
    for path, file in images:
        by_top.setdefault(path.parts[depth], []).append((path, file))
    if not images:
        raise EmptyDataset("There are no images; put those of each class into a folder of its name.", "file")
    strangers = [name for name in by_top if name not in ("train", *EVALUATION_SPLITS)]
    train_has_classes = any(len(path.parts) > depth + 2 for path, _ in by_top.get("train", []))
    if "train" not in by_top or (strangers and not train_has_classes):
        return Source(_image_rows(images, depth))
    if strangers:
        raise InvalidDataset(
            f"'{strangers[0]}' stands beside 'train', which holds class folders, but is no split such as "
            f"{', '.join(EVALUATION_SPLITS)}; rename it or take it away.",
            "file",
        )
    evaluation = _evaluation_split(by_top)
    return Source(
        _image_rows(by_top["train"], depth + 1),
        None if evaluation is None else _image_rows(by_top[evaluation], depth + 1),
    )


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _depth_of_classes(paths: Sequence[PurePosixPath]) -> int:
    """1 if a folder merely wraps those of the classes or splits."""
    tops = {path.parts[0] for path in paths}
    lengths = [len(path.parts) for path in paths]
    return int(len(tops) == 1 and "train" not in tops and min(lengths) > 1 and max(lengths) > 2)


def _image_rows(images: Iterable[tuple[PurePosixPath, Readable]], depth: int) -> list[PlacedRow]:
    rows = []
    for path, file in images:
        if len(path.parts) < depth + 2:
            raise InvalidDataset(f"Image '{path}' lies in no class folder; move it into one or take it away.", "file")
        rows.append(PlacedRow(f"Image '{path}'", {"image": Picture(str(path), file), "label": path.parts[depth]}))
    return rows
