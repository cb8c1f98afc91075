"""Small things about files that several parts need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORK_FOLDER = ".work"
"""Inside the output of a compression: what a killed call goes on from."""


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in parts."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
