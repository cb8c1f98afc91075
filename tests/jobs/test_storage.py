"""Object storage: the same promises in a local folder and on a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from jobs import storage as storage_module
from jobs.errors import NotFound, StorageUnavailable
from jobs.storage import CHUNK_BYTES, Storage
from tests.helpers import make_settings, s3_settings, wait_for
from tests.proxy import forwarding
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
    content, (source, target) = os.urandom(size), (tmp_path / "source", tmp_path / "target")
    source.write_bytes(content)
    sent = storage.put_file("jobs/1/model one.bin", source)
    fetched = storage.fetch_file("jobs/1/model one.bin", target)
    assert target.read_bytes() == content
    assert sent == fetched == hashlib.sha256(content).hexdigest()
    assert storage.size_of("jobs/1/model one.bin") == size
    assert b"".join(storage.chunks("jobs/1/model one.bin", size)) == content


@pytest.mark.parametrize("name", ['a "name".txt', "ü.txt", "a%20b", "a?b#c", "x+y=z&w", "~", "[x]"])
def test_a_name_may_hold_anything(storage: Storage, tmp_path: Path, name: str) -> None:
    put(storage, tmp_path, f"jobs/1/{name}")
    path = storage.local_path(f"jobs/1/{name}")
    if path is None:
        assert httpx2.get(storage.signed_url(f"jobs/1/{name}")).content == b"content"
    else:
        assert path.read_bytes() == b"content"
    assert fetch(storage, tmp_path, f"jobs/1/{name}") == b"content"


class Enough(Exception):
    pass


class CheckThatStops:
    """Lets two chunks pass."""

    def __init__(self) -> None:
        self.passed = 0

    def __call__(self) -> None:
        if self.passed == 2:
            raise Enough
        self.passed += 1


def test_an_upload_that_is_stopped_leaves_what_was_there(storage: Storage, tmp_path: Path) -> None:
    put(storage, tmp_path, "jobs/1/old.bin", b"old")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(4 * CHUNK_BYTES)
    for name in ("old.bin", "new.bin"):
        with pytest.raises(Enough):
            storage.put_file(f"jobs/1/{name}", tmp_path / "large", CheckThatStops())
    assert fetch(storage, tmp_path, "jobs/1/old.bin") == b"old"
    with pytest.raises(NotFound):
        storage.size_of("jobs/1/new.bin")
    folder = storage.local_path("jobs/1")
    assert folder is None or [file.name for file in folder.iterdir()] == ["old.bin"]


def test_a_download_that_is_stopped_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    put(storage, tmp_path, "jobs/1/large.bin", bytes(4 * CHUNK_BYTES))
    with pytest.raises(Enough):
        storage.fetch_file("jobs/1/large.bin", tmp_path / "target", CheckThatStops())
    assert list(tmp_path.glob("target*")) == []


def test_a_file_appears_only_when_it_is_whole(storage: Storage, tmp_path: Path) -> None:
    put(storage, tmp_path, "jobs/1/log", b"old")
    path = storage.local_path("jobs/1/log")
    link = storage.signed_url("jobs/1/log") if path is None else ""
    seen: list[bytes] = []
    (tmp_path / "large").write_bytes(bytes(3 * CHUNK_BYTES))
    storage.put_file(
        "jobs/1/log", tmp_path / "large", lambda: seen.append(path.read_bytes() if path else httpx2.get(link).content)
    )
    assert seen == [b"old"] * 3
    assert storage.size_of("jobs/1/log") == 3 * CHUNK_BYTES


@pytest.mark.parametrize("key", ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a/", "a\x00b"])
def test_a_key_that_leads_out_is_refused(storage: Storage, tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    calls: list[Callable[[], object]] = [
        lambda: storage.put_file(key, tmp_path / "file"),
        lambda: storage.fetch_file(key, tmp_path / "target"),
        lambda: storage.size_of(key),
        lambda: list(storage.chunks(key, 1)),
        lambda: storage.delete_under(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"key|path|null byte"):
            call()


def test_a_link_that_leads_out_is_refused(local_storage: Storage, tmp_path: Path) -> None:
    put(local_storage, tmp_path, "jobs/1/x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("not yours")
    inside = local_storage.local_path("jobs")
    assert inside is not None
    (inside / "link").symlink_to(outside)
    for call in (local_storage.size_of, local_storage.local_path, local_storage.delete_under):
        with pytest.raises(ValueError, match="leads out"):
            call("jobs/link/secret")
    local_storage.delete_under("jobs/1")
    assert (outside / "secret").read_text() == "not yours"


def test_deleting_a_folder_spares_its_neighbours(storage: Storage, tmp_path: Path) -> None:
    inside = ["jobs/1/attempt-1/config.json", "jobs/1/attempt-1/budget-0.5/model.safetensors"]
    outside = ["jobs/1/attempt-10/config.json", "jobs/2/attempt-1/config.json"]
    for key in inside + outside:
        put(storage, tmp_path, key)

    storage.delete_under("jobs/1/attempt-1")

    for key in inside:
        with pytest.raises(NotFound):
            fetch(storage, tmp_path, key)
    for key in outside:
        assert fetch(storage, tmp_path, key) == b"content"


def test_deleting_what_is_not_there_is_no_error(storage: Storage) -> None:
    storage.delete_under("jobs/nothing")


def test_a_name_is_no_prefix(storage: Storage, tmp_path: Path) -> None:
    for key in ("jobs/a/x", "jobs/ab/x"):
        put(storage, tmp_path, key)
    storage.delete_under("jobs/a")
    assert fetch(storage, tmp_path, "jobs/ab/x") == b"content"
    storage.delete_under("jobs/ab")
    with pytest.raises(NotFound):
        storage.size_of("jobs/ab/x")


def test_empty_folders_go_with_their_last_file(local_storage: Storage, tmp_path: Path) -> None:
    for key in ("jobs/1/attempt-1/budget-0.5/x", "jobs/1/attempt-2/x", "jobs/2/x"):
        put(local_storage, tmp_path, key)
    root = tmp_path / "a folder, 100 %"
    local_storage.delete_under("jobs/1/attempt-1")
    assert sorted(path.name for path in (root / "jobs" / "1").iterdir()) == ["attempt-2"]
    local_storage.delete_under("jobs/1/attempt-2")
    assert sorted(path.name for path in (root / "jobs").iterdir()) == ["2"]
    local_storage.delete_under("jobs/2")
    assert list(root.iterdir()) == []


def test_a_folder_that_cannot_be_deleted_is_an_error(local_storage: Storage, tmp_path: Path) -> None:
    put(local_storage, tmp_path, "jobs/1/x")
    folder = local_storage.local_path("jobs")
    assert folder is not None
    (folder / "link").symlink_to(folder / "1")
    with pytest.raises(StorageUnavailable):
        local_storage.delete_under("jobs/link")
    assert fetch(local_storage, tmp_path, "jobs/1/x") == b"content"


def test_any_number_of_files_is_deleted(s3_storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "KEYS_AT_ONCE", 10)
    keys = [f"jobs/1/{number}" for number in range(25)]
    for key in keys:
        put(s3_storage, tmp_path, key)
    s3_storage.delete_under("jobs/1")
    for key in keys:
        with pytest.raises(NotFound):
            s3_storage.size_of(key)


def test_a_storage_that_answers_is_ready(storage: Storage) -> None:
    storage.check()


def test_a_folder_that_is_gone_is_not_ready(local_storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "a folder, 100 %").rmdir()
    with pytest.raises(StorageUnavailable):
        local_storage.check()


PRIVATE = "jobs/1/private.bin"
CALLS: dict[str, Callable[[Storage, Path], object]] = {
    "check": lambda storage, _: storage.check(),
    "put": lambda storage, file: storage.put_file(PRIVATE, file),
    "fetch": lambda storage, file: storage.fetch_file(PRIVATE, file),
    "size": lambda storage, _: storage.size_of(PRIVATE),
    "delete": lambda storage, _: storage.delete_under("jobs/1"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("trouble", ["away", "mute", "refuses"])
def test_a_storage_in_trouble_is_one_error_that_tells_no_secrets(
    trouble: str,
    call: Callable[[Storage, Path], object],
    s3_server: S3,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_module, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(storage_module, "RETRIES", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        troubles = {
            "away": {"s3_endpoint": f"http://127.0.0.1:{free_ports(1)[0]}"},
            "mute": {"s3_endpoint": f"http://127.0.0.1:{mute.getsockname()[1]}"},
            "refuses": {"s3_secret_access_key": "wrong-secret"},
        }
        settings = make_settings(tmp_path, **s3_settings(s3_server, "x") | troubles[trouble])
        file = tmp_path / "file"
        file.write_bytes(b"content")
        with pytest.raises(StorageUnavailable) as caught:
            call(Storage(settings), file)
    assert (caught.value.code, caught.value.status) == ("storage_unavailable", 503)
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "the storage failed: " in caplog.text
    for secret in (settings.s3_secret_access_key.get_secret_value(), "127.0.0.1", "private"):
        assert secret not in told
    assert file.read_bytes() == b"content"


def test_what_is_not_there_is_not_found_and_its_key_stays_private(storage: Storage, tmp_path: Path) -> None:
    for call in (storage.size_of, lambda key: storage.fetch_file(key, tmp_path / "target")):
        with pytest.raises(NotFound, match=r"There is no file 'private\.bin'\.") as caught:
            call("jobs/1/private.bin")
        assert "jobs" not in str(caught.value)
    assert list(tmp_path.glob("target*")) == []


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


def test_a_link_leads_to_the_address_that_users_can_reach(s3_server: S3, tmp_path: Path) -> None:
    with forwarding(s3_server.endpoint) as proxy:
        given = s3_settings(s3_server, uuid.uuid4().hex) | {"s3_public_endpoint": proxy.url}
        storage = Storage(make_settings(tmp_path, **given))
        put(storage, tmp_path, "jobs/1/config.json")
        assert fetch(storage, tmp_path, "jobs/1/config.json") == b"content"
        assert proxy.connections == 0

        link = storage.signed_url("jobs/1/config.json")
        assert link.startswith(proxy.url)
        assert httpx2.get(link).content == b"content"
        assert httpx2.head(link).status_code == 403
        assert httpx2.head(storage.signed_url("jobs/1/config.json", "HEAD")).headers["Content-Length"] == "7"
        assert proxy.connections == 3


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_google_and_azure_are_opened_with_the_variables_that_the_page_names(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    [line] = [line for line in page.splitlines() if f"={scheme}://" in line]
    names = re.findall(r"((?:GOOGLE|AZURE)\w+)=", line)
    values = {"GOOGLE_SERVICE_ACCOUNT_KEY": google_account(), "AZURE_STORAGE_ACCOUNT_NAME": "films"}
    for name in names:
        monkeypatch.setenv(name, values.get(name, "c2VjcmV0"))
    storage = Storage(make_settings(tmp_path, storage_url=f"{scheme}://bucket/prefix"))
    link = storage.signed_url("jobs/a")
    host = {"gs": "storage.googleapis.com", "az": "films.blob.core.windows.net"}[scheme]
    assert link.startswith(f"https://{host}/bucket/prefix/jobs/a?")


def google_account() -> str:
    """As Google gives it, with a key that nobody knows."""
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "private_key_id": "1", "client_email": "jactus@films.iam"}
    return json.dumps({**account, "private_key": pem.decode()})
