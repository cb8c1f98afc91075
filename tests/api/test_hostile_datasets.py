"""Files that were made to do harm, against PostgreSQL: each is refused with a reason, and nothing is left of it."""

from __future__ import annotations

import json
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from pyarrow import parquet
from sqlalchemy import select

from api.app import create_app
from jobs.services import Services
from jobs.settings import Settings
from jobs.tables import Dataset, Leftover
from tests.api.requests import assert_refused, kept, upload
from tests.helpers import NOBODY_LISTENS, make_settings, signed_in
from tests.jactus_core.images import png
from tests.servers import Postgres

CSV = b"text,label\nfine,good\npoor,bad\n"
CLASSES = ("good", "bad")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where temporary files go."""
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, postgres_server: Postgres, migrated_postgres: str) -> Settings:
    """One database for all, as nothing is ever left in it."""
    url = postgres_server.new_database(template=migrated_postgres)
    return make_settings(tmp_path_factory.mktemp("data"), database_url=url, broker_url=NOBODY_LISTENS)


@pytest.fixture(scope="module")
def client(settings: Settings, scratch: Path) -> Iterator[TestClient]:
    """A server that answers 500 where it fails, as the real one."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield signed_in(client)


def assert_nothing_is_left(client: TestClient, settings: Settings, scratch: Path) -> None:
    assert kept(client, settings) == (0, [])
    assert list(scratch.iterdir()) == []
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    with services.database.reading() as session:
        assert session.scalars(select(Dataset)).all() == []
        assert session.scalars(select(Leftover)).all() == []


# Files


def image(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def archive(name: str, content: bytes = png(), mode: int = 0) -> bytes:
    """A zip of two good images and one more member."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for label in CLASSES:
            opened.writestr(f"{label}/1.png", png())
        info = zipfile.ZipInfo("x")
        info.filename, info.external_attr, info.compress_type = name, mode << 16, zipfile.ZIP_DEFLATED
        opened.writestr(info, content)
    return file.getvalue()


def archive_in_archive() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("images.zip", archive("good/2.png"))
    return file.getvalue()


def lying_archive() -> bytes:
    """Its third image says it has 1,000 bytes, and has ten million."""
    content = bytearray(archive("good/2.png", b"\0" * 10_000_000))
    directory = content.rindex(b"PK\1\2")
    content[directory + 24 : directory + 28] = struct.pack("<I", 1000)
    return bytes(content)


def lines(*rows: Any) -> bytes:
    good = [{"text": "fine", "label": label} for label in CLASSES]
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in (*good, *rows))


def table(columns: dict[str, Any]) -> bytes:
    file = BytesIO()
    parquet.write_table(pyarrow.table(columns), file, compression="zstd")
    return file.getvalue()


def repeated_row() -> bytes:
    """A hundred kilobytes that unpack to a gigabyte of text."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1_000_000, pyarrow.int8()), ["x" * 1000])
    return table({"text": text, "label": [0, 1] * 500_000})


def patched_footer() -> bytes:
    """Its footer says that it is two gigabytes long."""
    content = bytearray(table({"text": ["fine", "poor"], "label": CLASSES}))
    content[-8:-4] = struct.pack("<I", 2**31 - 1)
    return bytes(content)


Make = Callable[[], bytes]

ARCHIVES: dict[str, tuple[Make, str, str]] = {
    "path traversal": (lambda: archive("../../good/2.png"), "hostile_archive", "'..' in its name"),
    "absolute name": (lambda: archive("/etc/2.png"), "hostile_archive", "absolute name"),
    "drive": (lambda: archive("C:/good/2.png"), "hostile_archive", "absolute name"),
    "backslashes": (lambda: archive("..\\..\\2.png"), "hostile_archive", "backslash"),
    "symbolic link": (
        lambda: archive("good/2.png", b"/etc/passwd", stat.S_IFLNK | 0o777),
        "hostile_archive",
        "symbolic link",
    ),
    "device": (lambda: archive("good/2.png", b"", stat.S_IFCHR | 0o666), "hostile_archive", "special file"),
    "zip bomb": (lambda: archive("good/2.png", b"\0" * 50_000_000), "hostile_archive", "200 times its size"),
    "lie about the size": (lying_archive, "hostile_archive", "more than the 1000 bytes"),
    "null in a name": (lambda: archive("good/2.png\0.txt"), "hostile_archive", "null character"),
    "zip in a zip": (archive_in_archive, "empty_dataset", "no images"),
    "zip as an image": (lambda: archive("good/2.png", archive("a/b.png")), "undecodable_image", "is no image"),
    "program as an image": (lambda: archive("good/2.png", b"%!PS-Adobe-3.0"), "undecodable_image", "is no image"),
    "bomb as an image": (lambda: archive("good/2.png", image(50_000, 50_000)), "undecodable_image", "pixels"),
    "huge class name": (lambda: archive(f"{'x' * 300}/2.png"), "invalid_dataset", "at most 256 characters"),
    "half of it": (lambda: archive("good/2.png")[:300], "invalid_dataset", "not a zip archive"),
}

TABLES: dict[str, tuple[str, Make, str]] = {
    "a million columns": (
        "csv",
        lambda: b"text,label," + b"x," * 10**6 + b"\n",
        "1,000,003 columns",
    ),
    "a million fields": ("csv", lambda: CSV + b"x," * 10**6 + b"\n", "more fields than the header"),
    "one gigantic line": ("csv", lambda: CSV + b"x" * 9_000_000, "more than 8,000,000 characters"),
    "one gigantic field": (
        "csv",
        lambda: CSV + b'"' + b"x\n" * 600_000 + b'",good\n',
        "field larger",
    ),
    "gigantic column name": (
        "csv",
        lambda: b"text,label," + b"x" * 2000 + b"\n" + CSV,
        "longer than",
    ),
    "null in a cell": ("csv", lambda: CSV + b"po\0or,bad\n", "Row 4 holds a null character"),
    "null in a class": ("csv", lambda: CSV + b"poor,b\0ad\n", "Row 4 holds a null character"),
    "null in the header": ("csv", lambda: b"te\0xt,label\n", "Row 1 holds a null character"),
    "huge class name": (
        "csv",
        lambda: CSV + b"fine," + b"x" * 300 + b"\n",
        "at most 256 characters",
    ),
    "UTF-16": ("csv", lambda: CSV.decode().encode("utf-16"), "not UTF-8"),
    "UTF-16 without a mark": ("csv", lambda: CSV.decode().encode("utf-16-le"), "null character"),
    "Latin-1": ("csv", lambda: CSV + "café,good\n".encode("latin-1"), "not UTF-8"),
    "deep nesting": ("jsonl", lambda: lines(b'{"text": ' + b"[" * 10**6), "nested too deeply"),
    "gigantic JSON line": ("jsonl", lambda: lines({"text": "x" * 8_000_000}), "more than 8,000,000"),
    "JSON keys": ("jsonl", lambda: lines({str(key): 1 for key in range(1001)}), "1,001 columns"),
    "JSON null": ("jsonl", lambda: lines({"text": "x", "label": "b\0ad"}), "Row 3 holds a null"),
    "JSON null key": ("jsonl", lambda: lines({"text": "x", "la\0bel": 1}), "Row 3 has a column with a null"),
    "half a character": ("jsonl", lambda: lines({"text": "\ud800", "label": 1}), "surrogate"),
    "half a character as key": ("jsonl", lambda: lines({"\udfff": "x"}), "surrogate"),
    "half a character inside": (
        "jsonl",
        lambda: lines({"text": "x", "label": 1, "more": [{"x": ["\udfff"]}]}),
        "surrogate",
    ),
    "gigantic number": (
        "jsonl",
        lambda: lines(b'{"label": ' + b"9" * 5000 + b"}"),
        "not valid JSON",
    ),
    "no UTF-8": ("jsonl", lambda: lines(b'{"text": "caf\xe9", "label": 1}'), "not UTF-8"),
    "raw null": ("jsonl", lambda: lines(b'{"text": "\0", "label": 1}'), "null character"),
    "Parquet cut off": (
        "parquet",
        lambda: table({"text": ["a", "b"], "label": [0, 1]})[:-20],
        "not valid Parquet",
    ),
    "Parquet's footer": ("parquet", patched_footer, "not valid Parquet"),
    "Parquet bomb": ("parquet", repeated_row, "unpacks to more than 50 times its size"),
    "Parquet's columns": (
        "parquet",
        lambda: table({str(column): [1] for column in range(1001)}),
        "1,001 columns",
    ),
    "Parquet null": (
        "parquet",
        lambda: table({"text": ["fine", "poor"], "label": ["good", "b\0ad"]}),
        "Row 2: column 'label' must hold a text without null characters",
    ),
    "Parquet null in a name": (
        "parquet",
        lambda: table({"text": ["fine", "poor"], "label": [0, 1], "x\0": [0, 1]}),
        "null character or half of a surrogate pair in its name",
    ),
}


@pytest.mark.parametrize(("make", "code", "said"), ARCHIVES.values(), ids=ARCHIVES)
def test_a_hostile_archive_is_refused(
    client: TestClient, settings: Settings, scratch: Path, make: Make, code: str, said: str
) -> None:
    answer = upload(client, make(), "images.zip", task="image-classification")
    assert_refused(answer, 422, code, answer.json()["error"]["param"], said)
    assert_nothing_is_left(client, settings, scratch)


@pytest.mark.parametrize(("format", "make", "said"), TABLES.values(), ids=TABLES)
def test_a_hostile_table_is_refused(
    client: TestClient, settings: Settings, scratch: Path, format: str, make: Make, said: str
) -> None:
    answer = upload(client, make(), f"rows.{format}")
    code = "hostile_archive" if "unpacks" in said else "invalid_dataset"
    assert_refused(answer, 422, code, answer.json()["error"]["param"], said)
    assert_nothing_is_left(client, settings, scratch)


@pytest.mark.parametrize(
    "disposition",
    [
        b'name="file"; filename="a\x01.csv"',
        b'name="file"; filename="a\x7f.csv"',
        b'name="file"; filename="\xc2\x85.csv"',
        b'name="file"; filename="a\0.csv"',
        b'name="file"; filename=".."',
        b'name="file"; filename="a.csv/.."',
        b'name="file"; filename="a/"',
        b'name="file"; filename="a.csv\xff"',
        b'name="file"; filename="' + b"x" * 10_000 + b'.csv"',
        b'name="file"; filename=""',
        b'name="file"',
        b'filename="a.csv"',
        b"",
    ],
    ids=lambda disposition: repr(disposition)[:50],
)
def test_a_hostile_file_name_is_refused(
    client: TestClient, settings: Settings, scratch: Path, disposition: bytes
) -> None:
    answer = send_form(client, disposition)
    assert answer.status_code in (400, 422), answer.text
    assert set(answer.json()) == {"error"}
    assert len(answer.text) < 1000
    assert_nothing_is_left(client, settings, scratch)


def send_form(client: TestClient, disposition: bytes) -> Response:
    """A form as no client would write it."""
    body = b"--x\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + CSV + b"\r\n--x--\r\n"
    return client.post("/v1/datasets", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
