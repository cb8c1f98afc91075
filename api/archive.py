"""Several files of the storage as one tar stream, which never lies on a disk or in memory as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from tarfile import BLOCKSIZE, PAX_FORMAT, TarInfo

from jobs.storage import Storage
from jobs.tables import Artifact

END = bytes(2 * BLOCKSIZE)


class Archive:
    """The same files make the same bytes, so that the length and the ETag are known before the first is sent."""

    def __init__(self, files: Sequence[Artifact], moment: datetime) -> None:
        self._members = [(file, _header(file, moment)) for file in files]
        self.bytes = len(END) + sum(len(header) + file.bytes + _padding(file) for file, header in self._members)
        contents = hashlib.sha256(b"".join(header + file.sha256.encode() for file, header in self._members))
        self.etag = f'"{contents.hexdigest()}"'

    def chunks(self, storage: Storage) -> Iterator[bytes]:
        for file, header in self._members:
            yield header
            yield from storage.chunks(file.storage_key, file.bytes)
            yield bytes(_padding(file))
        yield END


def _header(file: Artifact, moment: datetime) -> bytes:
    """PAX, where a path may be of any length; what TarInfo leaves out (owner, mode) is the same everywhere."""
    entry = TarInfo(file.path)
    entry.size, entry.mtime = file.bytes, int(moment.timestamp())
    return entry.tobuf(PAX_FORMAT)


def _padding(file: Artifact) -> int:
    return -file.bytes % BLOCKSIZE
