from __future__ import annotations

import json
import random
import shutil
import stat
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import httpx2
import pyarrow
import pytest
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub import DatasetInfo, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from pyarrow import parquet

from jactus_core import archives, sources
from jactus_core.errors import DatasetNotFound, EmptyDataset, HostileArchive, InvalidDataset, UndecodableImage
from jactus_core.examples import Examples, read_examples
from jactus_core.pictures import Picture
from jactus_core.sources import (
    HubVersion,
    PlacedRow,
    Source,
    find_hub_version,
    format_of,
    open_file,
    open_hub,
    open_source,
)
from tests.jactus_core.images import png

CSV = 'text,label\nfine,1\n"two\nlines",0\n'
ROWS = [{"text": "fine", "label": "1"}, {"text": "two\nlines", "label": "0"}]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zipped(path: Path, *names: str, content: bytes = png()) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def foldered(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name, png())
    return root


def train(data: Any) -> list[PlacedRow]:
    return list(open_source(data).train)


def cells(source: Source) -> list[Any]:
    return [row.cells for row in source.train]


def images(source: Source) -> tuple[list[tuple[str, str]], list[tuple[str, str]] | None]:
    """Place and label of the training and of the evaluation images."""
    evaluation = source.evaluation
    return (
        [(row.place, row.cells["label"]) for row in source.train],
        None if evaluation is None else [(row.place, row.cells["label"]) for row in evaluation],
    )


# Tables


def test_csv_and_json_lines_give_the_same_rows_and_name_them_as_an_editor_counts(tmp_path: Path) -> None:
    csv = train(write(tmp_path / "a.csv", CSV))
    lines = "\n\n".join(json.dumps(row) for row in ROWS)
    json_lines = train(str(write(tmp_path / "a.ndjson", lines)))

    assert [row.cells for row in csv] == [row.cells for row in json_lines] == ROWS
    assert [row.place for row in csv] == ["Row 2", "Row 4"]
    assert [row.place for row in json_lines] == ["Row 1", "Row 3"]


def test_rows_can_be_read_twice_and_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.csv", b"\xef\xbb\xbf" + CSV.encode()))

    assert cells(source) == cells(source) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nx,1,2\n", "Row 2 has more fields than the header"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", "not UTF-8"),
        ("a.csv", 'text,label\n"x,1\n', "not valid CSV"),
        ("a.csv", "text,label\n" + "x" * 1_000_001, "not valid CSV: field larger"),
        ("a.jsonl", '{"text": "x"}\n{oops\n', "Row 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", "Row 1 must be a JSON object"),
        ("a.jsonl", b'{"text": "\xe9"}\n', "not UTF-8"),
        ("a.jsonl", "[" * 100_000, "Row 1 is not valid JSON"),
        ("a.parquet", CSV, "not valid Parquet"),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "not valid Parquet"),
        ("a.txt", "x", r"must end in \.csv, \.jsonl, \.ndjson, \.parquet, \.zip"),
        ("a.zip", CSV, "not a zip archive"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(InvalidDataset, match=message):
        train(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b,c,d\n1,2,3,4\n", "The file has 4 columns, more than 3"),
        ("a.csv", "text,label\nx,1\n" + "x" * 41 + ",1\n", "Row 3 has more than 40 characters"),
        ("a.csv", "text,label\nx,1\n" + '"\n",' * 20, "Row 13 has more than 40 characters"),
        ("a.csv", "a,bcdefghijkl\n", "The file has a column whose name is longer than 10 characters"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "c": 3, "d": 4}\n', "Row 2 has 4 columns, more than 3"),
        ("a.jsonl", '{"a": 1}\n{"a": "' + "x" * 40 + '"}\n', "Row 2 has more than 40 characters"),
        ("a.jsonl", '{"bcdefghijkl": 1}', "Row 1 has a column whose name is longer than 10 characters"),
    ],
)
def test_what_no_table_has_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, message: str
) -> None:
    for limit, value in (("COLUMNS", 3), ("COLUMN_CHARACTERS", 10), ("ROW_CHARACTERS", 40)):
        monkeypatch.setattr(sources, f"MAX_{limit}", value)
    with pytest.raises(InvalidDataset, match=message):
        train(write(tmp_path / name, content))


def test_many_rows_may_be_long_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_CHARACTERS", 20)

    assert len(train(write(tmp_path / "a.csv", "text,label\n" + '"x\ny",1\n' * 10))) == 10
    assert len(train(write(tmp_path / "a.jsonl", '{"text": "x"}\n' * 10))) == 10


def test_parquet_that_unpacks_to_far_more_than_it_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "EXPANSION_COUNTS_FROM", 10_000)
    nested = pyarrow.array([{"bytes": b"x" * 1000}] * 1000)
    repeated = pyarrow.DictionaryArray.from_arrays([0] * 1000, ["x" * 1000])
    for column in (["x" * 1000] * 1000, nested, repeated):
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
        with pytest.raises(HostileArchive, match="more than 50 times its size"):
            train(tmp_path / "a.parquet")

    parquet.write_table(pyarrow.table({"text": ["x" * 1000] * 9}), tmp_path / "a.parquet")
    assert len(train(tmp_path / "a.parquet")) == 9


def test_damaged_parquet_is_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    generator = random.Random(0)
    rows = {"text": [f"row {i}" for i in range(1000)], "label": [i % 2 for i in range(1000)]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet", row_group_size=300)
    whole = (tmp_path / "a.parquet").read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 6)):
            damaged[generator.randrange(generator.choice([0, len(whole) - 900]), len(whole))] = generator.randrange(256)
        try:
            train(write(tmp_path / "b.parquet", bytes(damaged)))
        except InvalidDataset:
            refused += 1
    assert refused > 100


def test_parquet_is_read_in_batches_and_keeps_images_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BATCH", 2)
    rows = [{"image": {"bytes": png(), "path": f"{i}.png"}, "label": i} for i in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")

    found = train(tmp_path / "a.parquet")

    assert [row.cells for row in found] == rows
    assert [row.place for row in found] == [f"Row {i}" for i in range(1, 6)]


def test_a_file_that_breaks_off_says_after_which_row(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [str(i) * 50 for i in range(1000)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=500, compression="gzip", use_dictionary=False)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    start = parquet.read_metadata(tmp_path / "a.parquet").row_group(1).column(0).data_page_offset
    content[start : start + 200] = b"\xff" * 200

    with pytest.raises(InvalidDataset, match=r"not valid Parquet after row 256: .*\w\.$"):
        train(write(tmp_path / "b.parquet", bytes(content)))


@pytest.mark.parametrize(
    ("name", "format"),
    [("A.CSV", "csv"), ("a.b.jsonl", "jsonl"), ("a.ndjson", "jsonl"), ("x.parquet", "parquet"), ("x.Zip", "zip")],
)
def test_the_ending_tells_the_format(name: str, format: str) -> None:
    assert format_of(name) == format


def test_a_file_without_an_ending_is_read_as_the_format_given(tmp_path: Path) -> None:
    shutil.copy(zipped(tmp_path / "a.zip", "cat/1.png"), tmp_path / "upload")

    assert cells(open_file(write(tmp_path / "data", CSV), "csv")) == ROWS
    assert images(open_file(tmp_path / "upload", "zip"))[0] == [("Image 'cat/1.png'", "cat")]


# Folders of images and zips of them

LAYOUTS = [
    pytest.param(
        ["dog/9.png", "cat/b/2.PNG", "cat/10.jpeg", "dog/x.webp", "README.md", "dog/Thumbs.db", "dog/notes.txt"],
        [("cat/10.jpeg", "cat"), ("cat/b/2.PNG", "cat"), ("dog/9.png", "dog"), ("dog/x.webp", "dog")],
        None,
        id="classes",
    ),
    pytest.param(
        ["cat/1.png", "cat/._1.png", "__MACOSX/cat/1.png", ".hidden/1.png"], [("cat/1.png", "cat")], None, id="hidden"
    ),
    pytest.param(
        ["train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "val/dog/4.png"],
        [("train/cat/1.png", "cat"), ("train/dog/2.png", "dog")],
        [("val/dog/4.png", "dog")],
        id="splits",
    ),
    pytest.param(["train/cat/1.png"], [("train/cat/1.png", "cat")], None, id="train alone"),
    pytest.param(
        ["pets/cat/1.png", "pets/dog/2.png"], [("pets/cat/1.png", "cat"), ("pets/dog/2.png", "dog")], None, id="wrapped"
    ),
    pytest.param(
        ["pets/train/cat/1.png", "pets/test/cat/2.png", "pets/LICENSE"],
        [("pets/train/cat/1.png", "cat")],
        [("pets/test/cat/2.png", "cat")],
        id="wrapped splits",
    ),
    pytest.param(
        ["bus/1.png", "train/2.png", "test/3.png"],
        [("bus/1.png", "bus"), ("test/3.png", "test"), ("train/2.png", "train")],
        None,
        id="train is a vehicle",
    ),
    pytest.param(["cat/1.png", "cat.png/dog/1.png"], [("cat/1.png", "cat"), ("cat.png/dog/1.png", "cat.png")], None),
]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(("names", "expected", "expected_evaluation"), LAYOUTS)
def test_the_folder_is_the_label(
    tmp_path: Path, kind: str, names: list[str], expected: list[tuple[str, str]], expected_evaluation: Any
) -> None:
    data = foldered(tmp_path / "root", *names) if kind == "folder" else zipped(tmp_path / "root.zip", *names)
    found, evaluation = images(open_source(data))

    assert found == [(f"Image '{path}'", label) for path, label in expected]
    assert evaluation == (
        None if expected_evaluation is None else [(f"Image '{path}'", label) for path, label in expected_evaluation]
    )


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["cat/1.png", "logo.png"], InvalidDataset, "Image 'logo.png' lies in no class folder"),
        (["train/cat/1.png", "test/2.png"], InvalidDataset, "Image 'test/2.png' lies in no class folder"),
        (["train/1.png", "test/2.png"], InvalidDataset, "Image 'train/1.png' lies in no class folder"),
        (["pets/cat/1.png", "pets/logo.png"], InvalidDataset, "Image 'pets/logo.png' lies in no class folder"),
        (["train/cat/1.png", "test/cat/2.png", "more/cat/3.png"], InvalidDataset, "'more' stands beside 'train'"),
        (["cat/notes.txt"], EmptyDataset, "no images"),
        ([], EmptyDataset, "no images"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_folder_whose_classes_are_unclear_is_refused(
    tmp_path: Path, kind: str, names: list[str], error: type[InvalidDataset], message: str
) -> None:
    (tmp_path / "root").mkdir()
    data = foldered(tmp_path / "root", *names) if kind == "folder" else zipped(tmp_path / "root.zip", *names)
    with pytest.raises(error, match=message) as caught:
        open_source(data)
    assert type(caught.value) is error


def test_a_zip_is_read_without_extracting_and_its_pictures_need_no_open_archive(tmp_path: Path) -> None:
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", png((1, 2, 3)), zipfile.ZIP_DEFLATED)
        archive.writestr("cat/2.png", png((4, 5, 6)), zipfile.ZIP_STORED)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())  # self-extracting archives begin with a program

    pictures = [row.cells["image"] for row in open_source(path).train]

    assert [picture.open().getpixel((0, 0)) for picture in pictures] == [(1, 2, 3), (4, 5, 6)]
    assert list(tmp_path.iterdir()) == [path]


# Hostile archives


def named(name: str, **fields: Any) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    for field, value in {"filename": name, "compress_type": zipfile.ZIP_DEFLATED, **fields}.items():
        setattr(info, field, value)
    return info


def hostile(path: Path, info: zipfile.ZipInfo, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", png())
        archive.writestr(info, content)
    return path


@pytest.mark.parametrize(
    ("info", "content", "message"),
    [
        (named("/etc/cat.png"), b"x", "absolute name"),
        (named("C:/cat.png"), b"x", "absolute name"),
        (named("cat/../../x.png"), b"x", r"'\.\.' in its name"),
        (named("../notes.txt"), b"x", r"'\.\.' in its name"),
        (named("cat\\x.png"), b"x", "backslash"),
        (named("cat/x.png\0.txt"), b"x", "null character"),
        (named("cat/x.png", external_attr=(stat.S_IFLNK | 0o777) << 16), b"/etc/passwd", "symbolic link"),
        (named("cat/x.png", external_attr=(stat.S_IFIFO | 0o777) << 16), b"", "special file"),
        (named("cat/x.png"), b"\0" * (archives.MAX_IMAGE_BYTES + 1), f"more than {archives.MAX_IMAGE_BYTES}"),
        (named("cat/x.png"), b"\0" * (2**20 + 1), "more than 200 times its size"),
    ],
)
def test_a_hostile_archive_is_refused_before_anything_is_read(
    tmp_path: Path, info: zipfile.ZipInfo, content: bytes, message: str
) -> None:
    with pytest.raises(HostileArchive, match=message):
        open_source(hostile(tmp_path / "a.zip", info, content))


def test_what_packs_well_but_is_small_is_fine(tmp_path: Path) -> None:
    path = hostile(tmp_path / "a.zip", named("cat/x.bmp"), b"\0" * 2**20)

    assert len(images(open_source(path))[0]) == 2


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", "cat/1.png")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)

    with pytest.raises(HostileArchive, match=r"'cat/1\.png' in the archive is encrypted"):
        open_source(path)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "a.zip", "cat/1.png", "cat/2.png", "cat/3.png")
    monkeypatch.setattr(archives, "MAX_ARCHIVE_FILES", 3)
    open_source(path)
    monkeypatch.setattr(archives, "MAX_ARCHIVE_FILES", 2)
    with pytest.raises(HostileArchive, match="3 files, more than 2"):
        open_source(path)


def test_a_list_of_files_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "a.zip", *(f"cat/{number}.png" for number in range(2000)), content=b"x")
    open_source(path)
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 100_000)
    with pytest.raises(HostileArchive, match="list of files takes"):
        open_source(path)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", "cat/1.png", "cat/2.png")
    content = bytearray(path.read_bytes())
    second = content.rindex(b"PK\1\2")
    content[second + 42 : second + 46] = struct.pack("<I", 0)
    path.write_bytes(content)

    with pytest.raises(HostileArchive, match="overlaps another file"):
        open_source(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_member_larger_than_it_says_is_not_unpacked(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("cat/1.png", b"\0" * 10_000_000)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\1\2")
    content[directory + 24 : directory + 28] = struct.pack("<I", 1000)  # of 10 MB
    path.write_bytes(content)
    [row] = open_source(path).train

    with pytest.raises(HostileArchive, match=r"'cat/1\.png' unpacks to more than the 1000 bytes"):
        row.cells["image"].open()


@pytest.mark.parametrize("damage", ["content", "header", "cut"])
def test_a_damaged_member_is_named_when_it_is_read(tmp_path: Path, damage: str) -> None:
    path = zipped(tmp_path / "a.zip", "cat/1.png", "cat/2.png")
    source = open_source(path)
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\3\4")
    content[start + (60 if damage == "content" else 0)] ^= 255
    path.write_bytes(content[: start + 35] if damage == "cut" else content)
    _, second = source.train

    with pytest.raises(UndecodableImage, match=r"'cat/2\.png' is damaged"):
        second.cells["image"].open()


def test_an_unusual_method_of_packing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"'cat/x\.png' is not packed by deflate"):
        open_source(hostile(tmp_path / "a.zip", named("cat/x.png", compress_type=zipfile.ZIP_BZIP2)))


# Lists and datasets in memory


def test_a_list_of_dictionaries_is_taken_as_it_is() -> None:
    assert train(ROWS) == [PlacedRow("Row 1", ROWS[0]), PlacedRow("Row 2", ROWS[1])]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([ROWS[0], "x"], "Row 2 must be a dictionary, not str"),
        (7, "must be a list of dictionaries or a datasets.Dataset, not int"),
        (b"a.csv", "not bytes"),
        ({"train": "a.csv"}, "Rows of 'train' must be a list .*, not str"),
    ],
)
def test_what_holds_no_rows_is_refused(data: Any, message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        train(data)


def labelled_images() -> datasets.Dataset:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = {"image": [Image.new("RGB", (2, 2), (i, i, i)) for i in range(4)], "label": [1, 0, -1, None]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_dataset_gives_class_names_and_undecoded_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BATCH", 3)
    found = train(labelled_images().with_format("numpy"))

    assert [row.place for row in found] == ["Row 1", "Row 2", "Row 3", "Row 4"]
    assert [row.cells["label"] for row in found] == ["dog", "cat", None, None]
    assert set(found[0].cells["image"]) == {"bytes", "path"}
    assert Image.open(BytesIO(found[3].cells["image"]["bytes"])).getpixel((0, 0)) == (3, 3, 3)


def test_a_dataset_keeps_the_order_of_its_selection() -> None:
    chosen = labelled_images().select([1, 0])

    assert [row.cells["label"] for row in train(chosen)] == ["cat", "dog"]


def text_split(text: str) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"text": text}])


@pytest.mark.parametrize(
    ("splits", "chosen", "evaluation"),
    [
        (["train"], "train", None),
        (["test", "train", "validation"], "train", "validation"),
        (["test", "dev", "train"], "train", "dev"),
        (["unsupervised", "train", "test"], "train", "test"),
        (["test"], "test", None),
        (["all"], "all", None),
    ],
)
def test_the_splits_are_chosen_by_name(splits: list[str], chosen: str, evaluation: str | None) -> None:
    source = open_source(datasets.DatasetDict({name: text_split(f"of {name}") for name in splits}))

    assert list(source.train) == [PlacedRow(f"Row 1 of '{chosen}'", {"text": f"of {chosen}"})]
    if evaluation is None:
        assert source.evaluation is None
    else:
        assert source.evaluation is not None
        assert list(source.evaluation) == [PlacedRow(f"Row 1 of '{evaluation}'", {"text": f"of {evaluation}"})]


@pytest.mark.parametrize(("splits", "found"), [(["a", "test"], "'a', 'test'"), ([], "none")])
def test_splits_without_one_to_train_on_are_named(splits: list[str], found: str) -> None:
    with pytest.raises(InvalidDataset, match=f"no split 'train'; its splits are {found}"):
        open_source({name: text_split(name) for name in splits})


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calls of `load_dataset`, which knows one dataset."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def load(*args: Any, **options: Any) -> datasets.DatasetDict:
        calls.append((args, options))
        return datasets.DatasetDict(train=text_split("fine"), test=text_split("good"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


@pytest.mark.parametrize(
    ("name", "revision", "token"), [("someone/reviews", "v1", None), ("reviews", None, "hf_secret")]
)
def test_a_name_of_the_hub_is_loaded_without_any_other_option(
    hub: list[Any], name: str, revision: str | None, token: str | None
) -> None:
    source = open_source(name, revision, token=token)

    assert cells(source) == [{"text": "fine"}]
    assert hub == [((name,), {"revision": revision, "token": token})]


def test_a_dataset_of_the_hub_names_no_files_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tmp_path / "ours.png", tmp_path / "cache" / "theirs.png"
    theirs.parent.mkdir()
    for file in (ours, theirs):
        file.write_bytes(png())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(theirs.parent))

    def read(*paths: Path) -> Examples:
        rows = datasets.Dataset.from_dict({"image": [str(path) for path in paths], "label": ["cat", "dog"]})
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=rows))
        return read_examples("someone/pets", "image-classification")[0]

    assert len(read(theirs, theirs)) == 2
    with pytest.raises(InvalidDataset, match="must hold a path inside the folder"):
        read(theirs, ours)


@pytest.mark.parametrize("data", ["someone/reviews.csv", "nothing.ZIP", Path("someone/reviews"), "/no/such/folder"])
def test_what_looks_like_a_file_is_never_sought_on_the_hub(hub: list[Any], data: Any) -> None:
    with pytest.raises(DatasetNotFound, match="There is no"):
        open_source(data)
    assert hub == []


def test_a_folder_of_this_host_goes_before_the_hub(
    hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foldered(tmp_path / "someone" / "pets", "cat/1.png")
    monkeypatch.chdir(tmp_path)

    assert images(open_source("someone/pets"))[0] == [("Image 'cat/1.png'", "cat")]
    assert hub == []


@pytest.mark.parametrize("name", ["csv", "imagefolder", "parquet"])
def test_the_name_of_a_reader_does_not_read_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write(tmp_path / "secret.csv", CSV)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetNotFound, match=f"There is no dataset '{name}'"):
        open_source(name)


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (DatasetNotFoundError("gated"), DatasetNotFound, "'a/b' at revision 'v1', .* private or gated, .* a token"),
        (ConnectionError("Couldn't reach"), DatasetNotFound, "the hub cannot be reached"),
        (RuntimeError("Dataset scripts are no longer supported"), InvalidDataset, "scripts are no longer supported"),
        (ValueError("Config name is missing.\nPick one of ['x']"), InvalidDataset, r"missing\. Pick one of \['x'\]\."),
        (DataFilesNotFoundError("No (supported) data files found"), InvalidDataset, "data files found"),
        (OSError(28, "No space left on device"), InvalidDataset, "No space left"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    error: type[DatasetNotFound | InvalidDataset],
    message: str,
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(error, match=message):
        open_source("a/b", "v1")


def dataset_info(monkeypatch: pytest.MonkeyPatch, answer: DatasetInfo | Exception) -> list[dict[str, Any]]:
    """Options of the calls that the hub answers so."""
    calls: list[dict[str, Any]] = []

    def info(_: HfApi, name: str, **options: Any) -> DatasetInfo:
        calls.append({"name": name, **options})
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(HfApi, "dataset_info", info)
    return calls


def test_a_version_of_the_hub_is_a_commit_with_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [{"rfilename": "a.parquet", "size": 1000}, {"rfilename": "b", "size": 24}, {"rfilename": "c"}]
    counts: dict[str, Any] = {"downloads": 0, "likes": 0, "tags": []}
    info = DatasetInfo(id="a/b", sha="c0ffee", siblings=files, **counts)  # type: ignore[no-untyped-call]
    calls = dataset_info(monkeypatch, info)

    assert find_hub_version("a/b", "main", "hf_token") == HubVersion("c0ffee", 1024)
    assert [(call["name"], call["revision"], call["token"]) for call in calls] == [("a/b", "main", "hf_token")]


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "a token that may read it"), (404, "a token that may read it"), (503, "the hub cannot be reached")],
)
def test_a_version_that_the_hub_does_not_give_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    request = httpx2.Request("GET", "https://huggingface.co/api/datasets/a/b")
    dataset_info(monkeypatch, HfHubHTTPError("no", response=httpx2.Response(status, request=request)))
    with pytest.raises(DatasetNotFound, match=message):
        find_hub_version("a/b")
    with pytest.raises(DatasetNotFound, match="nor a hub id"):
        find_hub_version("../b")


def test_a_folder_of_this_host_is_no_dataset_of_the_hub(
    hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "someone/reviews/a.csv", CSV)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetNotFound, match="There is no dataset 'someone/reviews'"):
        open_hub("someone/reviews")
    assert hub == []


def test_an_offline_host_says_that_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetNotFound, match="the hub cannot be reached"):
        open_source("someone/no-such-dataset")


def test_pictures_are_the_cells_of_a_folder(tmp_path: Path) -> None:
    [row] = train(foldered(tmp_path, "cat/1.png"))

    assert row.cells == {"image": Picture("cat/1.png", tmp_path / "cat" / "1.png"), "label": "cat"}
