"""Zip files from anyone: checked before use, and read without ever being extracted."""

from __future__ import annotations

import re
import stat
import struct
import zlib
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from jactus_core.errors import HostileArchive, InvalidDataset, UndecodableImage

MAX_ARCHIVE_FILES = 1_000_000
MAX_DIRECTORY_BYTES = 64 * 2**20
MAX_IMAGE_BYTES = 64 * 2**20
MAX_RATIO = 200  # deflate packs a photograph by 1, a drawing by 20
RATIO_COUNTS_FROM = 2**20  # bytes
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
ENCRYPTED = 0x1 | 0x40 | 0x2000
DRIVE = re.compile("[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """A file in a zip; it keeps nothing open, so threads and processes can share and send it."""

    archive: Path
    name: str
    offset: int
    method: int
    packed_size: int
    size: int
    crc: int

    def read_bytes(self) -> bytes:
        """The unpacked file; raises HostileArchive if it is larger than the archive's directory says."""
        try:
            content = self._unpack()
        except (zlib.error, struct.error) as error:
            raise UndecodableImage(f"'{self.name}' is damaged in the archive: {error}.", "file") from error
        if len(content) > self.size:
            raise HostileArchive(f"'{self.name}' unpacks to more than the {self.size} bytes the archive says.", "file")
        if zlib.crc32(content) != self.crc:
            raise UndecodableImage(f"'{self.name}' is damaged in the archive: its checksum is wrong.", "file")
        return content

    def _unpack(self) -> bytes:
        """At most one byte more than `size`."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            signature, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            if signature != b"PK\3\4":
                raise struct.error("it has no header")
            file.seek(name_length + extra_length, 1)
            packed = file.read(min(self.packed_size, MAX_IMAGE_BYTES + 1))
        if self.method == ZIP_STORED:
            return packed[: self.size + 1]
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, self.size + 1)


def list_members(
    archive: Path, max_bytes: int = MAX_IMAGE_BYTES, content: str = "a plain folder of images"
) -> list[Member]:
    """The files of a zip, in its order, none larger than `max_bytes`; raises HostileArchive, or InvalidDataset if it
    is no zip. Messages name the `content` that was expected."""
    try:
        with _Bounded(archive) as file, ZipFile(file) as opened:
            infos = opened.infolist()
    except (BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise InvalidDataset(f"The file is not a zip archive: {error}.", "file") from error
    if len(infos) > MAX_ARCHIVE_FILES:
        raise HostileArchive(f"The archive holds {len(infos)} files, more than {MAX_ARCHIVE_FILES}.", "file")
    for info in infos:
        _require_honest(info, max_bytes, content)
    _require_apart(infos)
    return [
        Member(archive, i.filename, i.header_offset, i.compress_type, i.compress_size, i.file_size, i.CRC)
        for i in infos
        if not i.is_dir()
    ]


class _Bounded(FileIO):
    """A file for ZipFile, which reads the list of the members at once, however long it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise HostileArchive(f"The archive's list of files takes {size:,} bytes, which is too much.", "file")
        return super().read(size) or b""


def _require_honest(info: ZipInfo, max_bytes: int, content: str) -> None:
    name = info.orig_filename  # of `filename`, zipfile cuts what follows a null character
    kind = stat.S_IFMT(info.external_attr >> 16)
    reason = None
    if name.startswith("/") or DRIVE.match(name):
        reason = "has an absolute name"
    elif ".." in name.split("/"):
        reason = "has '..' in its name"
    elif "\\" in name or "\0" in name:
        reason = "has a backslash or a null character in its name"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        reason = "is a symbolic link or a special file"
    elif info.flag_bits & ENCRYPTED:
        reason = "is encrypted"
    elif info.file_size > max_bytes:
        reason = f"unpacks to {info.file_size} bytes, more than {max_bytes}"
    elif info.file_size > RATIO_COUNTS_FROM and info.file_size > MAX_RATIO * info.compress_size:
        reason = f"unpacks to more than {MAX_RATIO} times its size"
    elif info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise InvalidDataset(f"'{name}' is not packed by deflate; make the archive with an ordinary zip tool.", "file")
    if reason:
        raise HostileArchive(f"'{name}' in the archive {reason}; zip {content}.", "file")


def _require_apart(infos: list[ZipInfo]) -> None:
    """Members that share bytes let a small archive unpack to any size."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise HostileArchive(f"'{info.filename}' in the archive overlaps another file.", "file")
        end = info.header_offset + LOCAL_HEADER.size + info.compress_size
