"""The work folder: each finished step leaves its result there, and the next call with the same inputs goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hex) over anything JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class WorkFolder:
    """Results by name, each a JSON file beside a safetensors file; the JSON is written last and seals the pair.

    A result counts only under the key it was kept with, so a changed input makes it void.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def recall(self, name: str, key: str) -> dict[str, Any] | None:
        """The facts that were kept under this name and key."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["facts"] if kept["key"] == key else None

    def tensors(self, name: str, *parts: str) -> dict[str, Tensor]:
        """The tensors that were kept, or only the named ones, without reading the rest."""
        with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
            return {part: file.get_tensor(part) for part in parts or file.keys()}

    def keep(self, name: str, key: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write so that a reader sees all of it or nothing, even if this process dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.drop(name)
        if tensors is not None:
            on_cpu = {part: tensor.detach().cpu().contiguous() for part, tensor in tensors.items()}
            save_file(on_cpu, self.folder / f"{name}.safetensors")
        draft = self.folder / f"{name}.json.part"
        draft.write_text(json.dumps({"key": key, "facts": facts}), encoding="utf-8")
        draft.replace(self.folder / f"{name}.json")

    def drop(self, name: str) -> None:
        """Forget a result; the seal goes first."""
        for ending in ("json", "safetensors"):
            (self.folder / f"{name}.{ending}").unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
