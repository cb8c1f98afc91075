"""A zip of a model folder, from anyone: checked as hostile, unpacked file by file, and never run."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from jactus_core.archives import Member, list_members
from jactus_core.errors import HostileArchive, InvalidDataset, RemoteCode, UnsafeWeights, UnsupportedModel
from jactus_core.models import ModelReference, find_model, needs_code
from jobs.errors import ServiceError

CONTENT = "a plain model folder"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".npz", ".joblib"})
WELCOME = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".md"})
WELCOME_NAMES = frozenset({"LICENSE", "NOTICE", "README"})
MAX_FILES = 1000
MAX_TEXT_BYTES = 64 * 2**20
"""Of one file beside the weights, such as a tokenizer."""
MAX_GROWTH = 4
"""Weights hardly compress."""
GROWTH_COUNTS_FROM = 64 * 2**20  # bytes


class InvalidModel(ServiceError):
    """A file that is no model folder."""

    code = "invalid_model"
    status = 422


def unpack(archive: Path, folder: Path, filename: str) -> ModelReference:
    """Check the archive, then write its files into `folder`, which does not exist; what it holds is then a model that
    can be loaded safely. Raises InvalidModel, HostileArchive, UnsafeWeights, RemoteCode or UnsupportedModel."""
    files = _members(archive)
    folder.mkdir()
    try:
        with ZipFile(archive) as opened:
            for name, member in files.items():
                with opened.open(member.name) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise InvalidModel(f"'{filename}' is damaged: {error}.", "file") from error
    for file in folder.glob("*.json"):
        if needs_code(_parsed(file)):
            raise RemoteCode(f"'{file.name}' names Python code of its own (auto_map), which is never run here.", "file")
    count_parameters(folder)
    try:
        return find_model(folder.name, root=folder.parent)
    except UnsupportedModel as error:
        error.param = "file"
        raise


def count_parameters(folder: Path, param: str = "file") -> int:
    """Of all weights in the folder, by their headers alone; raises InvalidModel where one cannot be read."""
    count = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "np") as weights:
                count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InvalidModel(f"'{file.name}' is not a safetensors file: {error}.", param) from error
    return count


def _members(archive: Path) -> dict[str, Member]:
    """The files by name, without hidden ones and without the folder that may be wrapped around them."""
    allowed = max(MAX_GROWTH * archive.stat().st_size, GROWTH_COUNTS_FROM)
    try:
        members = list_members(archive, allowed, CONTENT)
    except HostileArchive:
        raise
    except InvalidDataset as error:
        raise InvalidModel(error.message, error.param) from error
    if len(members) > MAX_FILES:
        raise HostileArchive(f"The archive holds {len(members)} files, more than {MAX_FILES}.", "file")
    if sum(member.size for member in members) > allowed:
        raise HostileArchive(
            f"The archive unpacks to more than {allowed} bytes; zip the model without compression.", "file"
        )
    paths = [(PurePosixPath(member.name), member) for member in members]
    shown = [(path, member) for path, member in paths if not _is_hidden(path)]
    wrapped = len({path.parts[0] for path, _ in shown}) == 1 and all(len(path.parts) > 1 for path, _ in shown)
    files: dict[str, Member] = {}
    for path, member in shown:
        _require_welcome(path.relative_to(path.parts[0]) if wrapped else path, member)
        if path.name in files:
            raise HostileArchive(f"'{member.name}' is in the archive twice; zip {CONTENT}.", "file")
        files[path.name] = member
    return files


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _require_welcome(path: PurePosixPath, member: Member) -> None:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UnsafeWeights(f"'{path}' may run code when it is loaded; convert the weights to safetensors.", "file")
    if suffix == ".py":
        raise RemoteCode(f"'{path}' is Python code, which is never run here.", "file")
    if len(path.parts) > 1:
        raise InvalidModel(f"'{path}' lies in a folder inside the model's; zip {CONTENT}.", "file")
    if path.suffix not in WELCOME and path.name not in WELCOME_NAMES:
        raise InvalidModel(f"'{path}' is no part of a model; leave it out.", "file")
    if suffix != ".safetensors" and member.size > MAX_TEXT_BYTES:
        raise InvalidModel(f"'{path}' has more than {MAX_TEXT_BYTES} bytes, too many beside the weights.", "file")


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"'{file.name}' is not valid JSON: {error}.", "file") from error
