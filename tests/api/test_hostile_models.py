"""Model archives from anyone: what may run code, leave its folder or fill the disk is refused, and nothing stays."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from jobs.database import Database
from jobs.settings import Settings
from jobs.tables import Leftover, Model
from tests.api.requests import assert_refused, create_job, upload_reviews, zipped
from tests.api.test_models import upload_model
from tests.tiny import write_tiny_bert


def with_file(name: str, content: bytes, mode: int = 0) -> Callable[[Path], bytes]:
    """The archive of a good model and one file more."""

    def build(folder: Path) -> bytes:
        archive = io.BytesIO(zipped(folder))
        with zipfile.ZipFile(archive, "a") as file:
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr, info.compress_type = name, mode << 16, zipfile.ZIP_DEFLATED
            file.writestr(info, content)
        return archive.getvalue()

    return build


def without(name: str) -> Callable[[Path], bytes]:
    return lambda folder: zipped(folder, {name: None})


def instead(name: str, content: bytes) -> Callable[[Path], bytes]:
    return lambda folder: zipped(folder, {name: content})


def with_code(name: str) -> Callable[[Path], bytes]:
    """A configuration that names a Python class of its own."""
    described = {"model_type": "bert", "part": [{"auto_map": {"AutoConfig": "evil.Config"}}]}
    return lambda folder: zipped(folder, {name: json.dumps(described).encode()})


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str, str]] = {
    "pickle": (with_file("pytorch_model.bin", b"\x80\x04."), "unsafe_weights", "pytorch_model.bin"),
    "pickle in capitals": (with_file("MODEL.PT", b"\x80\x04."), "unsafe_weights", "MODEL.PT"),
    "pickle in a folder": (with_file("old/model.pkl", b"\x80\x04."), "unsafe_weights", "model.pkl"),
    "code": (with_file("modeling_evil.py", b"import os"), "remote_code", "modeling_evil.py"),
    "code in config.json": (with_code("config.json"), "remote_code", "auto_map"),
    "code in the tokenizer": (with_code("tokenizer_config.json"), "remote_code", "tokenizer_config.json"),
    "program": (with_file("libevil.so", b"\x7fELF"), "invalid_model", "libevil.so"),
    "link": (
        with_file("vocab2.txt", b"../../../etc/passwd", stat.S_IFLNK | 0o777),
        "hostile_archive",
        "symbolic link",
    ),
    "traversal": (with_file("../../evil.json", b"{}"), "hostile_archive", "'..'"),
    "absolute": (with_file("/evil.json", b"{}"), "hostile_archive", "absolute"),
    "twice": (with_file("config.json", b"{}"), "hostile_archive", "twice"),
    "folder": (with_file("onnx/config.json", b"{}"), "invalid_model", "folder"),
    "bomb": (with_file("notes.txt", b"\0" * 2**24), "hostile_archive", "200 times"),
    "large text": (with_file("notes.txt", bytes(range(256)) * 2**18 + b"x"), "hostile_archive", "more than 67108864"),
    "no config": (without("config.json"), "unsupported_model", "config.json"),
    "no weights": (without("model.safetensors"), "unsafe_weights", "safetensors"),
    "config is no JSON": (instead("config.json", b"{"), "invalid_model", "config.json"),
    "config is deep": (instead("config.json", b"[" * 100_000), "invalid_model", "config.json"),
    "config without a type": (instead("config.json", b"{}"), "unsupported_model", "model_type"),
    "weights are no safetensors": (instead("model.safetensors", b"\x80\x04." * 9), "invalid_model", "safetensors"),
    "weights are cut": (
        lambda folder: zipped(folder, {"model.safetensors": (folder / "model.safetensors").read_bytes()[:-9]}),
        "invalid_model",
        "safetensors",
    ),
    "shards outside": (
        with_file("model.safetensors.index.json", b'{"weight_map": {"a": "../../etc/passwd"}}'),
        "unsupported_model",
        "leads out",
    ),
    "damaged": (lambda folder: _damaged(zipped(folder)), "invalid_model", "damaged"),
    "no zip": (lambda folder: b"PK\3\4 and nothing", "invalid_model", "zip"),
    "empty zip": (lambda folder: b"PK\5\6" + bytes(18), "unsupported_model", "config.json"),
}


def _damaged(archive: bytes) -> bytes:
    middle = archive.index(b"model.safetensors") + 2000
    return archive[:middle] + bytes(8) + archive[middle + 8 :]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    client: TestClient, settings: Settings, tiny_bert: Path, kind: str
) -> None:
    build, code, said = HOSTILE[kind]
    assert_refused(upload_model(client, build(tiny_bert)), 422, code, "file", said)
    _assert_nothing_kept(settings)


def test_an_archive_that_unpacks_to_much_more_than_it_is_is_refused(
    client: TestClient, settings: Settings, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.model_archive.GROWTH_COUNTS_FROM", 0)
    several = {f"notes{number}.txt": b"\0" * 2**18 for number in range(5)}
    answer = upload_model(client, zipped(tiny_bert, several))
    assert_refused(answer, 422, "hostile_archive", "file", "without compression")
    _assert_nothing_kept(settings)


def test_an_archive_that_is_too_large_is_refused_while_it_arrives(client: TestClient, settings: Settings) -> None:
    answer = upload_model(client, b"x" * (settings.max_upload_bytes + 1))
    assert_refused(answer, 413, "payload_too_large")
    _assert_nothing_kept(settings)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "vocab.txt", "added_tokens.json"])
def test_a_folder_of_the_model_root_that_links_out_of_it_is_refused(
    client: TestClient, settings: Settings, tmp_path: Path, file: str
) -> None:
    outside = write_tiny_bert(tmp_path / "outside")
    (outside / "added_tokens.json").write_text("{}")
    folder = write_tiny_bert(settings.model_root / f"linked-{file}")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(outside / file)

    answer = create_job(client, upload_reviews(client), model=folder.name)
    assert_refused(answer, 422, "unsupported_model", "model", f"'{file}'")
    found = client.post("/v1/models/preflight", json={"model": folder.name}).json()
    assert [problem["code"] for problem in found["problems"]] == ["unsupported_model"]
    listed = client.get("/v1/models/local").json()["data"]
    assert folder.name not in [model["name"] for model in listed]


def _assert_nothing_kept(settings: Settings) -> None:
    database = Database(settings.database_url)
    with database.reading() as session:
        assert session.query(Model).count() == session.query(Leftover).count() == 0
    database.close()
    stored = Path(settings.storage_url.removeprefix("file://"))
    assert [path for path in stored.rglob("*") if path.is_file()] == []
