"""Images that are opened when they are needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Protocol

from jactus_core.errors import UndecodableImage

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
DECODERS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # those that run no other program


class Readable(Protocol):
    """A file, or a member of an archive."""

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class Picture:
    """An image that is not yet decoded; `name` tells people which one it is."""

    name: str
    content: Readable | bytes | Image

    def open(self) -> Image:
        """The image as RGB and upright (the first frame of several); raises UndecodableImage."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        content = self.content if isinstance(self.content, Image.Image) else BytesIO(_read(self.name, self.content))
        try:
            image = Image.open(content, formats=DECODERS) if isinstance(content, BytesIO) else content
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} × {image.height} pixels are too many")
            return ImageOps.exif_transpose(image).convert("RGB")
        except UnidentifiedImageError as error:
            raise UndecodableImage(f"'{self.name}' is no image of type {', '.join(DECODERS)}.", "file") from error
        except Exception as error:  # on damaged files decoders raise errors of every kind
            raise UndecodableImage(f"Image '{self.name}' cannot be decoded: {error}.", "file") from error

    def sha256(self) -> str:
        """Hex digest of the file, or of size and pixels where there is none."""
        from PIL import Image

        if isinstance(self.content, Image.Image):
            image = self.open()
            return hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).hexdigest()
        return hashlib.sha256(_read(self.name, self.content)).hexdigest()


def _read(name: str, content: Readable | bytes) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except OSError as error:
        raise UndecodableImage(f"Image '{name}' cannot be read: {error.strerror}.", "file") from error
