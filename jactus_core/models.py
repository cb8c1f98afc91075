"""Finding a pretrained model, and refusing early what cannot be loaded safely. Needs no torch."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from jactus_core.errors import ModelNotFound, RemoteCode, UnsafeWeights, UnsupportedModel

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class ModelReference:
    """A model that exists: a folder, or a hub id pinned to a commit."""

    name: str  # as the user wrote it
    location: str  # what `from_pretrained` takes
    revision: str | None  # commit on the hub; None for a folder
    model_type: str


def find_model(name: str, revision: str | None = None, root: Path | None = None) -> ModelReference:
    """Look `name` up as a folder, then on the hub.

    With `root`, only folders inside it count, as a service needs. Raises ModelNotFound or UnsupportedModel, with the
    remedy in the message.
    """
    folder = _folder(name, root)
    if folder is not None:
        _require_safetensors(name, [path.name for path in folder.iterdir()])
        return ModelReference(name, str(folder), None, _model_type(name, folder / "config.json"))
    if not HUB_ID.fullmatch(name):
        raise ModelNotFound(f"There is no model '{name}': neither a model folder nor a hub id.", "model")
    return _on_hub(name, revision)


def _folder(name: str, root: Path | None) -> Path | None:
    folder = Path(name) if root is None else root / name
    if root is not None and not folder.resolve().is_relative_to(root.resolve()):
        return None
    return folder if folder.is_dir() else None


def _on_hub(name: str, revision: str | None) -> ModelReference:
    """Ask the hub, or look in its local cache when it cannot be reached."""
    missing = f"There is no model '{name}': not in the model folder of this host"
    try:
        if not constants.HF_HUB_OFFLINE:
            with suppress(httpx2.TransportError):
                info = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT)
                _require_safetensors(name, [sibling.rfilename for sibling in info.siblings or []])
                config = Path(hf_hub_download(name, "config.json", revision=info.sha))
                return ModelReference(name, name, info.sha, _model_type(name, config))
        config = Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True))
    except GatedRepoError as error:
        raise ModelNotFound(f"'{name}' is gated; accept its licence and give this host a token.", "model") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(f"{missing}, and unknown to the hub.", "model") from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"'{name}' has no revision '{revision}' on the hub.", "revision") from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ModelNotFound(f"{missing}, and the hub cannot be reached.", "model") from error
    _require_safetensors(name, [path.name for path in config.parent.iterdir()])
    return ModelReference(name, name, config.parent.name, _model_type(name, config))


def _require_safetensors(name: str, files: list[str]) -> None:
    if "config.json" not in files:
        raise UnsupportedModel(f"'{name}' has no config.json; it is not a transformers model.", "model")
    if not any(file.endswith(".safetensors") for file in files):
        raise UnsafeWeights(f"'{name}' has no safetensors weights; convert it first.", "model")


def _model_type(name: str, config: Path) -> str:
    try:
        described: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"The config.json of '{name}' cannot be read: {error}.", "model") from error
    model_type = described.get("model_type") if isinstance(described, dict) else None
    if not isinstance(model_type, str):
        raise UnsupportedModel(f"The config.json of '{name}' names no model_type.", "model")
    if "auto_map" in described:
        raise RemoteCode(f"'{name}' needs its own Python code, which is never run here.", "model")
    return model_type
