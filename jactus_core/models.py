"""Finding a pretrained model, and refusing early what cannot be loaded safely. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
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

from jactus_core.errors import GatedModel, ModelNotFound, RemoteCode, UnsafeWeights, UnsupportedModel

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_TIMEOUT = 10.0  # seconds
CONFIG_BYTES = 2**22
"""No config.json is larger."""
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class ModelReference:
    """A model that exists: a folder, or a hub id pinned to a commit."""

    name: str  # as the user wrote it
    location: str  # what `from_pretrained` takes
    revision: str | None  # commit on the hub; None for a folder
    model_type: str
    config_file: Path | None = None
    bytes: int | None = None  # of the files that loading it reads; None where the hub was not asked
    parameters: int | None = None  # as far as the hub tells
    gated: bool = False


def find_model(
    name: str, revision: str | None = None, root: Path | None = None, token: str | None = None
) -> ModelReference:
    """Look `name` up as a folder, then on the hub, where `token` opens gated and private models.

    With `root`, only folders inside it count and nothing in them may link out of it, as a service needs. Raises
    ModelNotFound or UnsupportedModel, with the remedy in the message.
    """
    folder = _folder(name, root)
    if folder is not None:
        if root is not None:
            _require_inside(name, folder, root.resolve())
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        _require_safetensors(name, [*sizes])
        config = folder / "config.json"
        return ModelReference(name, str(folder), None, _model_type(name, config), config, bytes_needed(sizes))
    if not HUB_ID.fullmatch(name):
        raise ModelNotFound(f"There is no model '{name}': neither a model folder nor a hub id.", "model")
    return _on_hub(name, revision, token)


def bytes_needed(sizes: Mapping[str, int]) -> int:
    """Bytes of the files that loading reads, of a repository with files of these names and sizes."""
    weights = {name for name in sizes if SHARD.fullmatch(name)}
    if "model.safetensors" in sizes:
        weights = {"model.safetensors"}
    beside = {name for name in sizes if "/" not in name and name.endswith(BESIDE_WEIGHTS)}
    return sum(sizes[name] for name in weights | beside)


def _folder(name: str, root: Path | None) -> Path | None:
    folder = Path(name) if root is None else root / name
    if root is not None:
        try:
            resolved, root = folder.resolve(), root.resolve()
        except (OSError, RuntimeError):  # a name too long, a loop of links
            return None
        if resolved == root or not resolved.is_relative_to(root):
            return None
    return folder if folder.is_dir() else None


def _require_inside(name: str, folder: Path, root: Path) -> None:
    """Every file under `folder` is an ordinary one that lies under `root`, and so is every shard an index names."""
    for path in chain(folder.rglob("*"), _shards(folder)):  # an index is read when it is known to be ordinary
        if not _is_inside(path, root):
            raise UnsupportedModel(
                f"'{path.relative_to(folder)}' of '{name}' is missing or leads out of the model folder.", "model"
            )


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root) and (path.is_file() or path.is_dir())
    except (OSError, RuntimeError):  # a loop of links
        return False


def _shards(folder: Path) -> Iterator[Path]:
    """The files that the index of the weights names."""
    for index in folder.glob("*.index.json"):
        with suppress(OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            yield from (folder / name for name in names)  # of a broken index loading says what is wrong


def _on_hub(name: str, revision: str | None, token: str | None) -> ModelReference:
    """Ask the hub, or look in its local cache when it cannot be reached."""
    missing = f"There is no model '{name}': not in the model folder of this host"
    try:
        if not constants.HF_HUB_OFFLINE:
            with suppress(httpx2.TransportError):
                hub = HfApi(token=token)
                info = hub.model_info(name, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True)
                if info.gated:
                    hub.auth_check(name)  # the cache may hold files that somebody else's token opened
                sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
                _require_safetensors(name, [*sizes])
                config = Path(hf_hub_download(name, "config.json", revision=info.sha, token=token))
                return ModelReference(
                    name,
                    name,
                    info.sha,
                    _model_type(name, config),
                    config,
                    bytes_needed(sizes),
                    info.safetensors.total if info.safetensors else None,
                    bool(info.gated),
                )
        config = Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True))
    except GatedRepoError as error:
        raise GatedModel(
            f"'{name}' is gated; accept its licence on the hub and give a token of yours.", "model"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(f"{missing}, and unknown to the hub.", "model") from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"'{name}' has no revision '{revision}' on the hub.", "revision") from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ModelNotFound(f"{missing}, and the hub cannot be reached.", "model") from error
    _require_safetensors(name, [path.name for path in config.parent.iterdir()])
    return ModelReference(name, name, config.parent.name, _model_type(name, config), config)


def _require_safetensors(name: str, files: list[str]) -> None:
    if "config.json" not in files:
        raise UnsupportedModel(f"'{name}' has no config.json; it is not a transformers model.", "model")
    if not any(file.endswith(".safetensors") for file in files):
        raise UnsafeWeights(f"'{name}' has no safetensors weights; convert it first.", "model")


def _model_type(name: str, config: Path) -> str:
    try:
        if config.stat().st_size > CONFIG_BYTES:
            raise ValueError(f"it has more than {CONFIG_BYTES} bytes")
        described: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(f"The config.json of '{name}' cannot be read: {error}.", "model") from error
    model_type = described.get("model_type") if isinstance(described, dict) else None
    if not isinstance(model_type, str):
        raise UnsupportedModel(f"The config.json of '{name}' names no model_type.", "model")
    if needs_code(described):
        raise RemoteCode(f"'{name}' needs its own Python code, which is never run here.", "model")
    return model_type


def needs_code(described: Any) -> bool:
    """Whether a configuration names Python code of its own, at any depth."""
    parts = [described]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if "auto_map" in part:
                return True
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return False
