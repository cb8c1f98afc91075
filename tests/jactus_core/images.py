"""Small image files."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image


def png(colour: tuple[int, int, int] = (9, 9, 9), size: tuple[int, int] = (2, 2)) -> bytes:
    return encoded(Image.new("RGB", size, colour))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
