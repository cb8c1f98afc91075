"""Object storage: S3, Google, Azure or a local folder behind one interface."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from jobs.errors import NotFound, StorageUnavailable
from jobs.settings import Settings

logger = logging.getLogger(__name__)

CHUNK_BYTES = 8 * 2**20
"""What one request moves; larger files go in parts, each with timeouts and retries of its own."""
PROBE = "readiness"
PARTS_AT_ONCE = 4
KEYS_AT_ONCE = 1000
CONNECT_SECONDS = 2
REQUEST_SECONDS = 30
RETRIES = 2
RETRY_SECONDS = 5

Check = Callable[[], object]
"""Asked between two chunks; it must not use a storage itself."""


def _go_on() -> None:
    pass


class Storage:
    """Keys are relative paths such as `jobs/<id>/attempt-1/budget-0.5/model.safetensors`.

    What is not there is a NotFound, whatever else goes wrong a StorageUnavailable. An object appears whole or not at
    all.
    """

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.signed_url_seconds
        self._root: Path | None = None
        parts = urlsplit(settings.storage_url)
        if parts.scheme == "file":
            self._root = Path(unquote(parts.path)).resolve()
            self._root.mkdir(parents=True, exist_ok=True)
            self._store: Any = LocalStore(self._root)
        else:
            self._store = _open(settings, settings.s3_endpoint)
            self._signer = _open(settings, settings.s3_public_endpoint or settings.s3_endpoint)

    def put_file(self, key: str, file: Path, check: Check = _go_on) -> str:
        """Upload and return the SHA-256; what `check` raises stops it, and nothing is kept."""
        key, digest = self._checked(key), hashlib.sha256()
        with file.open("rb") as source, _one_error():
            obstore.put(
                self._store,
                key,
                _hashed(_read(source), digest, check),
                use_multipart=file.stat().st_size > CHUNK_BYTES,
                chunk_size=CHUNK_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )
        return digest.hexdigest()

    def fetch_file(self, key: str, file: Path, check: Check = _go_on) -> str:
        """Download and return the SHA-256; what `check` raises stops it, and nothing is kept."""
        partial, digest = file.with_name(f"{file.name}.part"), hashlib.sha256()
        try:
            with partial.open("wb") as target:
                for chunk in _hashed(self.chunks(key, self.size_of(key)), digest, check):
                    target.write(chunk)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        return digest.hexdigest()

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """The first `size` bytes of an object; a reader may be as slow as it likes."""
        key = self._checked(key)
        for start in range(0, size, CHUNK_BYTES):
            with _one_error(key):
                chunk = bytes(obstore.get_range(self._store, key, start=start, end=min(start + CHUNK_BYTES, size)))
            yield chunk

    def size_of(self, key: str) -> int:
        """Bytes of an object."""
        key = self._checked(key)
        with _one_error(key):
            return int(obstore.head(self._store, key)["size"])

    def local_path(self, key: str) -> Path | None:
        """Where the object lies on this machine, if the storage is a local folder."""
        return None if self._root is None else self._root / self._checked(key)

    def signed_url(self, key: str, method: Literal["GET", "HEAD"] = "GET") -> str:
        """A link that anybody can download from for a while; not for local storage."""
        with _one_error():
            return str(obstore.sign(self._signer, method, self._checked(key), timedelta(seconds=self._seconds)))

    def delete_under(self, prefix: str) -> None:
        """Delete every object inside the folder `prefix`."""
        prefix = self._checked(prefix)
        if self._root is not None:
            _delete_folder(self._root, self._root / prefix)
            return
        with _one_error():
            for keys in self._listed(prefix):
                obstore.delete(self._store, keys)

    def keys_under(self, prefix: str) -> list[str]:
        """Every object inside the folder `prefix`."""
        with _one_error():
            return [key for keys in self._listed(self._checked(prefix)) for key in keys]

    def check(self) -> None:
        """Raise when nothing can be written; it is the same small object every time."""
        if self._root is not None and not self._root.is_dir():
            raise StorageUnavailable
        with _one_error():
            obstore.put(self._store, PROBE, b"ready?")

    def _listed(self, prefix: str) -> Iterator[list[str]]:
        for batch in obstore.list(self._store, prefix, chunk_size=KEYS_AT_ONCE):
            yield [str(entry["path"]) for entry in batch]

    def _checked(self, key: str) -> str:
        """Refuse a key that leads out of the storage, by its parts or through a link; the service makes none."""
        if set(key.split("/")) & {"", ".", ".."}:
            raise ValueError(f"not a storage key: {key!r}")
        if self._root is not None and not (self._root / key).resolve().is_relative_to(self._root):
            raise ValueError(f"a storage key that leads out of the storage: {key!r}")
        return key


def _open(settings: Settings, s3_endpoint: str) -> Any:
    """The object store behind the settings; it gives up after seconds, as every caller can try again."""
    client: Any = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "allow_http": s3_endpoint.startswith("http://"),
    }
    options: dict[str, Any] = {}
    if settings.storage_url.startswith("s3:"):
        options["region"] = settings.s3_region
        if s3_endpoint:
            options |= {"endpoint": s3_endpoint, "virtual_hosted_style_request": False}
        if settings.s3_access_key_id:
            options["access_key_id"] = settings.s3_access_key_id
            options["secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
    retry: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    return from_url(settings.storage_url, client_options=client, retry_config=retry, **options)


def _read(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _hashed(chunks: Iterator[bytes], digest: Any, check: Check) -> Iterator[bytes]:
    for chunk in chunks:
        check()
        digest.update(chunk)
        yield chunk


@contextmanager
def _one_error(key: str = "") -> Iterator[None]:
    """Whatever the store raises becomes an error of ours, without the address, the key or the request in it.

    With a key, an object that is not there is a NotFound.
    """
    try:
        yield
    except FileNotFoundError as error:
        if key:
            raise NotFound("file", PurePosixPath(key).name) from None
        raise _unavailable(error) from None
    except BaseError as error:
        raise _unavailable(error) from None


def _unavailable(error: Exception) -> StorageUnavailable:
    """The log gets the reason alone, which follows the request in the first line of what the store says."""
    reason = str(error).partition("\n")[0].rpartition(" - ")[2]
    logger.warning("the storage failed: %s", reason)
    return StorageUnavailable()


def _delete_folder(root: Path, folder: Path) -> None:
    """Delete `folder`, and the folders around it that are empty then."""
    try:
        while folder.is_dir():
            with suppress(FileNotFoundError):  # somebody else deletes it as well
                shutil.rmtree(folder)
    except OSError as error:
        raise _unavailable(error) from None
    with suppress(OSError):  # the first that is not empty
        for parent in list(folder.relative_to(root).parents)[:-1]:
            (root / parent).rmdir()
