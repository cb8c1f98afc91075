"""Object storage: S3, Google, Azure or a local folder behind one interface."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import LocalStore, from_url

from jobs.settings import Settings

CHUNK_BYTES = 8 * 2**20


class Storage:
    """Keys are relative paths such as `jobs/<id>/attempt-1/budget-0.5/model.safetensors`."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.signed_url_seconds
        self._root: Path | None = None
        parts = urlsplit(settings.storage_url)
        if parts.scheme == "file":
            self._root = Path(unquote(parts.path))
            self._root.mkdir(parents=True, exist_ok=True)
            self._store: Any = LocalStore(self._root)
        else:
            self._store = from_url(settings.storage_url, **_s3_options(settings) if parts.scheme == "s3" else {})

    def put_file(self, key: str, file: Path) -> None:
        """Upload, in parts when large."""
        obstore.put(self._store, key, file)

    def fetch_file(self, key: str, file: Path) -> None:
        with file.open("wb") as handle:
            for chunk in obstore.get(self._store, key).stream(CHUNK_BYTES):
                handle.write(bytes(chunk))

    def local_path(self, key: str) -> Path | None:
        """Where the object lies on this machine, if it does."""
        return None if self._root is None else self._root / key

    def signed_url(self, key: str) -> str:
        """A link that anybody can download from for a while; not for local storage."""
        return str(obstore.sign(self._store, "GET", key, timedelta(seconds=self._seconds)))

    def delete_under(self, prefix: str) -> None:
        """Delete every object whose key starts with the folder `prefix`."""
        if self._root is not None:
            shutil.rmtree(self._root / prefix, ignore_errors=True)
            return
        for keys in self._listed(prefix):
            obstore.delete(self._store, keys)

    def check(self) -> None:
        """Raise when the storage does not answer."""
        next(self._listed("datasets"), None)

    def _listed(self, prefix: str) -> Iterator[list[str]]:
        for batch in obstore.list(self._store, prefix):
            yield [str(entry["path"]) for entry in batch]


def _s3_options(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {"region": settings.s3_region}
    if settings.s3_endpoint:
        options["endpoint"] = settings.s3_endpoint
        options["virtual_hosted_style_request"] = False
        options["client_options"] = {"allow_http": settings.s3_endpoint.startswith("http://")}
    if settings.s3_access_key_id:
        options["access_key_id"] = settings.s3_access_key_id
        options["secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
    return options
