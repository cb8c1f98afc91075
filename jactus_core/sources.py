"""Where rows come from: files, image folders and zips of them, lists, and datasets of Hugging Face."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TextIO

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from jactus_core.archives import list_members
from jactus_core.errors import DatasetNotFound, EmptyDataset, HostileArchive, InvalidDataset
from jactus_core.models import HUB_ID, HUB_TIMEOUT
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
MAX_COLUMNS = 1000
MAX_COLUMN_CHARACTERS = 1000  # of a column's name
MAX_FIELD_CHARACTERS = 1_000_000
MAX_ROW_CHARACTERS = 8_000_000
MAX_EXPANSION = 50  # times a Parquet file's size that its rows may take; text takes 5
EXPANSION_COUNTS_FROM = 64 * 2**20  # bytes
BATCH = 256  # rows of a columnar source held at a time
UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that no tokenizer takes and no database keeps: null, and halves of surrogate pairs."""


class PlacedRow(NamedTuple):
    """A row, and where it stands in words that begin a sentence."""

    place: str
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Rows to train on, and those to evaluate on where the source sets some apart."""

    train: Iterable[PlacedRow]
    evaluation: Iterable[PlacedRow] | None = None
    folders: tuple[Path, ...] | None = None  # paths in the cells lead to files of these; None: to any


@dataclass(frozen=True)
class Rows:
    """Rows that are read anew at each iteration; one that cannot be read is raised, or comes as an error of `read`."""

    read: Callable[[], Iterator[PlacedRow | InvalidDataset]]

    def __iter__(self) -> Iterator[PlacedRow]:
        for row in self.read():
            if isinstance(row, InvalidDataset):
                raise row
            yield row


def format_of(filename: str) -> Format:
    """The format a file name stands for; raises InvalidDataset for any other ending."""
    suffix = Path(filename).suffix.lower()
    if suffix not in FORMATS:
        raise InvalidDataset(f"'{filename}' is not a dataset file: the name must end in {', '.join(FORMATS)}.", "file")
    return FORMATS[suffix]


def open_source(data: Any, revision: str | None = None, *, token: str | None = None) -> Source:
    """Accept what people have at hand.

    A path to a file or an image folder, a dataset's id on the hub (only there `revision` and `token` count), a list of
    dictionaries, a `datasets.Dataset`, or a dictionary of splits such as a `datasets.DatasetDict`.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, str):
        if not Path(data).exists() and Path(data).suffix.lower() not in FORMATS:
            return open_hub(data, revision, token)
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
    return Source(Rows(lambda: read(path)), folders=(path.parent,))


def _from_path(path: Path) -> Source:
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        return _from_images((PurePosixPath(file.relative_to(path).as_posix()), file) for file in files)
    if not path.is_file():
        raise DatasetNotFound(f"There is no file '{path}'.", "data")
    return open_file(path, format_of(path.name))


@dataclass(frozen=True)
class HubVersion:
    """A dataset of the hub as it is at one commit."""

    commit: str
    bytes: int  # of all its files


def open_hub(name: str, revision: str | None = None, token: str | None = None) -> Source:
    """Rows of a dataset of the hub, never of a folder of this host; its cells name no files but those it brought."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    with _hub_errors(name, revision):
        # `load_dataset` reads what lies in the current folder first, and with "csv" nothing else
        if Path(name).exists() or name in _PACKAGED_DATASETS_MODULES:
            raise DatasetNotFoundError(f"'{name}' means something else on this host")
        found = _from_splits(datasets.load_dataset(name, revision=revision, token=token))
        return replace(found, folders=(Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)))


def find_hub_version(name: str, revision: str | None = None, token: str | None = None) -> HubVersion:
    """The commit that `revision` (the newest by default) stands for now."""
    with _hub_errors(name, revision):
        found = HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True, token=token)
        if found.sha is None:
            raise ValueError("the hub names no commit")
        return HubVersion(found.sha, sum(file.size or 0 for file in found.siblings or ()))


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """What the hub and its libraries raise, as errors that say what to do."""
    if not HUB_ID.fullmatch(name):
        raise DatasetNotFound(f"There is no dataset '{name}': neither a file or folder nor a hub id.", "data")
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    at = f" at revision '{revision}'" if revision else ""
    try:
        yield
    except (DatasetNotFoundError, HfHubHTTPError, ConnectionError, httpx2.TransportError) as error:
        if isinstance(error, DatasetNotFoundError) or _is_refusal(error):
            raise DatasetNotFound(
                f"There is no dataset '{name}'{at}, neither on this host nor on the hub; if it is private or gated, "
                "accept its terms there and give a token that may read it.",
                "data",
            ) from error
        raise DatasetNotFound(
            f"There is no dataset '{name}'{at} on this host, and the hub cannot be reached; "
            "check the connection, or give a path.",
            "data",
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise InvalidDataset(
            f"The dataset '{name}'{at} of the hub cannot be loaded: {_in_one_line(error)}.", "data"
        ) from error


def _is_refusal(error: Exception) -> bool:
    """Whether the hub did answer: no such thing, or nothing for this token."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404)


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


def _rows_of(rows: Any, where: str = "") -> Rows:
    datasets = sys.modules.get("datasets")  # who has a Dataset has imported it
    if datasets is not None and isinstance(rows, datasets.Dataset):
        return Rows(lambda: _dataset_rows(rows, where))
    if isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)):
        return Rows(lambda: _listed_rows(rows, where))
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


def _csv_rows(path: Path) -> Iterator[PlacedRow | InvalidDataset]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as handle:
        lines = _Lines(handle)
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            _require_columns("The file", header)
            for fields in reader:
                lines.of_row = 0
                place = f"Row {reader.line_num}"
                if len(fields) > len(header):
                    yield InvalidDataset(f"{place} has more fields than the header.", "file")
                elif fields:
                    yield PlacedRow(place, dict(zip_longest(header, fields)))
        except csv.Error as error:
            raise InvalidDataset(f"The file is not valid CSV: {error}.", "file") from error


def _json_rows(path: Path) -> Iterator[PlacedRow | InvalidDataset]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        lines = _Lines(handle)
        for number, line in enumerate(lines, start=1):
            lines.of_row = 0
            if line.strip():
                yield _json_row(f"Row {number}", line)


def _json_row(place: str, line: str) -> PlacedRow | InvalidDataset:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            return InvalidDataset(f'{place} must be a JSON object such as {{"text": …, "label": …}}.', "file")
        _require_columns(place, row)
        if "\\u" in line and any(UNUSABLE.search(text) for text in _texts(row)):
            return InvalidDataset(f"{place} holds a null character or half of a surrogate pair; take it out.", "file")
    except RecursionError:
        return InvalidDataset(f"{place} is not valid JSON: it is nested too deeply.", "file")
    except ValueError as error:
        return InvalidDataset(f"{place} is not valid JSON: {error}.", "file")
    except InvalidDataset as error:
        return error
    return PlacedRow(place, row)


def _texts(value: Any) -> Iterator[str]:
    """Every string in what JSON can hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


class _Lines:
    """Lines of a UTF-8 text; who reads them sets `of_row` to 0 after each row, so that no row fills the memory."""

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle
        self._number = 0
        self.of_row = 0  # characters

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = self._handle.readline(MAX_ROW_CHARACTERS + 1)
        except UnicodeDecodeError as error:
            raise InvalidDataset(
                f"The file is not UTF-8 text (byte {error.start}); save it as UTF-8.", "file"
            ) from error
        if not line:
            raise StopIteration
        self._number += 1
        self.of_row += len(line)
        if self.of_row > MAX_ROW_CHARACTERS:
            raise InvalidDataset(f"Row {self._number} has more than {MAX_ROW_CHARACTERS:,} characters.", "file")
        if "\0" in line:
            raise InvalidDataset(f"Row {self._number} holds a null character; save the file as UTF-8 text.", "file")
        return line


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    from pyarrow import parquet

    number = unpacked = 0
    most = max(EXPANSION_COUNTS_FROM, MAX_EXPANSION * path.stat().st_size)
    try:
        with parquet.ParquetFile(path) as file:
            _require_columns("The file", file.schema_arrow.names)
            for batch in file.iter_batches(BATCH):
                for cells in zip(*batch.columns, strict=True):
                    row = {name: cell.as_py() for name, cell in zip(batch.schema.names, cells, strict=True)}
                    unpacked += _size(row)
                    if unpacked > most:
                        raise HostileArchive(f"The file unpacks to more than {MAX_EXPANSION} times its size.", "file")
                    number += 1
                    yield PlacedRow(f"Row {number}", row)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InvalidDataset(
            f"The file is not valid Parquet after row {number}: {_in_one_line(error)}.", "file"
        ) from error


def _size(value: Any) -> int:
    """Roughly the bytes that a cell or a row takes."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return 8
    return 8 + sum(map(_size, value))


def _require_columns(place: str, names: Collection[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise InvalidDataset(f"{place} has {len(names):,} columns, more than {MAX_COLUMNS:,}.", "file")
    for name in names:
        if len(name) > MAX_COLUMN_CHARACTERS:
            raise InvalidDataset(
                f"{place} has a column whose name is longer than {MAX_COLUMN_CHARACTERS:,} characters: '{name[:20]}…'.",
                "file",
            )
        if UNUSABLE.search(name):
            raise InvalidDataset(
                f"{place} has a column with a null character or half of a surrogate pair in its name: {name[:50]!r}.",
                "file",
            )


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
