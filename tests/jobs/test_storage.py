"""Object storage: the same promises in a local folder and on a real S3 server."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import httpx2
import pytest
from obstore.exceptions import BaseError

from jobs.storage import Storage
from tests.helpers import make_settings, s3_settings, wait_for
from tests.servers import S3, free_ports


@pytest.fixture
def s3_storage(s3_server: S3, tmp_path: Path) -> Storage:
    return Storage(make_settings(tmp_path, **s3_settings(s3_server, uuid.uuid4().hex)))


@pytest.fixture
def local_storage(tmp_path: Path) -> Storage:
    return Storage(make_settings(tmp_path, storage_url=(tmp_path / "a folder, 100 %").as_uri()))


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest) -> Storage:
    found = request.getfixturevalue(f"{request.param}_storage")
    assert isinstance(found, Storage)
    return found


def put(storage: Storage, folder: Path, key: str, content: bytes = b"content") -> None:
    file = folder / "source"
    file.write_bytes(content)
    storage.put_file(key, file)


def fetch(storage: Storage, folder: Path, key: str) -> bytes:
    file = folder / "target"
    storage.fetch_file(key, file)
    return file.read_bytes()


@pytest.mark.parametrize("size", [0, 7, 12 * 2**20], ids=["empty", "small", "in parts"])
def test_a_file_comes_back_as_it_was(storage: Storage, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    put(storage, tmp_path, "jobs/1/model one.bin", content)
    assert fetch(storage, tmp_path, "jobs/1/model one.bin") == content


def test_deleting_a_folder_spares_its_neighbours(storage: Storage, tmp_path: Path) -> None:
    inside = ["jobs/1/attempt-1/config.json", "jobs/1/attempt-1/budget-0.5/model.safetensors"]
    outside = ["jobs/1/attempt-10/config.json", "jobs/2/attempt-1/config.json"]
    for key in inside + outside:
        put(storage, tmp_path, key)

    storage.delete_under("jobs/1/attempt-1")

    for key in inside:
        with pytest.raises(FileNotFoundError):
            fetch(storage, tmp_path, key)
    for key in outside:
        assert fetch(storage, tmp_path, key) == b"content"


def test_deleting_what_is_not_there_is_no_error(storage: Storage) -> None:
    storage.delete_under("jobs/nothing")


def test_a_storage_that_answers_is_ready(storage: Storage) -> None:
    storage.check()


def test_a_storage_that_is_away_is_not_ready(tmp_path: Path, s3_server: S3) -> None:
    [port] = free_ports(1)
    away = S3(f"http://127.0.0.1:{port}", s3_server.access_key_id, s3_server.secret_access_key)
    with pytest.raises(BaseError):
        Storage(make_settings(tmp_path, **s3_settings(away, "x"))).check()


def test_a_local_file_is_found_and_has_no_link(local_storage: Storage, tmp_path: Path) -> None:
    put(local_storage, tmp_path, "jobs/1/config.json")
    path = local_storage.local_path("jobs/1/config.json")
    assert path is not None
    assert path.read_bytes() == b"content"


def test_a_signed_link_downloads_that_file_without_credentials_and_nothing_else(
    s3_storage: Storage, tmp_path: Path
) -> None:
    put(s3_storage, tmp_path, "jobs/1/model one.bin", b"mine")
    put(s3_storage, tmp_path, "jobs/2/model one.bin", b"other")
    link = s3_storage.signed_url("jobs/1/model one.bin")

    assert s3_storage.local_path("jobs/1/model one.bin") is None
    assert httpx2.get(link).content == b"mine"
    assert httpx2.get(link.replace("jobs/1", "jobs/2")).status_code == 403
    assert httpx2.get(link[:-1] + ("0" if link[-1] != "0" else "1")).status_code == 403
    assert httpx2.get(link.partition("?")[0]).status_code == 403
    assert httpx2.put(link, content=b"changed").status_code == 403


def test_a_signed_link_expires(s3_server: S3, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, signed_url_seconds=1, **s3_settings(s3_server, uuid.uuid4().hex))
    storage = Storage(settings)
    put(storage, tmp_path, "jobs/1/config.json")
    link = storage.signed_url("jobs/1/config.json")
    wait_for(lambda: httpx2.get(link).status_code == 403, 10, "expiry")
