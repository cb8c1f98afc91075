"""Models that jobs may name: uploaded ones, folders under the model root, and those of the hub."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jactus_core.errors import ModelNotFound, UnsupportedModel
from jactus_core.models import ModelReference, find_model
from jobs import leftovers, model_archive, moves, secrets
from jobs.clock import new_id, now
from jobs.database import Database, newest_first
from jobs.errors import InUse, NotFound, ServiceError
from jobs.keys import Caller
from jobs.settings import Settings
from jobs.states import LIVE
from jobs.storage import Check, Storage
from jobs.tables import Job, Model

UPLOADED = re.compile(r"model_[0-9a-f]{28}")
CONFIG = "config.json"


class DamagedModel(ServiceError):
    """A stored file is not what was uploaded."""

    code = "damaged_model"
    status = 500


@dataclass(frozen=True)
class Named:
    """What a request says about its model, with what the database knows of it."""

    name: str
    revision: str | None = None
    uploaded: Model | None = None
    token: str | None = field(default=None, repr=False)
    sealed: str | None = field(default=None, repr=False)  # tells apart what different tokens may see


def look_up(
    session: Session,
    settings: Settings,
    tenant: str,
    name: str,
    revision: str | None = None,
    secret: str | None = None,
    *,
    keep: bool = False,
) -> Named:
    """Raises NotFound for the id of an upload or the name of a secret that does not exist. With `keep` nobody deletes
    the upload before this transaction ends."""
    uploaded = find_uploaded(session, tenant, name, "model", keep=keep) if UPLOADED.fullmatch(name) else None
    if secret is None:
        return Named(name, revision, uploaded)
    token = secrets.reveal(session, settings, tenant, secret)
    return Named(name, revision, uploaded, token, secrets.find(session, tenant, secret).sealed)


def receive(database: Database, storage: Storage, caller: Caller, filename: str, archive: Path) -> Model:
    """Check an uploaded archive and keep its files; raises what `model_archive.unpack` does and leaves nothing then."""
    id = new_id("model")
    with tempfile.TemporaryDirectory(prefix="jactus-model-") as scratch:
        folder = Path(scratch) / "model"
        reference = model_archive.unpack(archive, folder, filename)
        parameters, prefix = model_archive.count_parameters(folder), f"models/{id}"
        with database.writing() as session:
            leftovers.expect(session, prefix)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": storage.put_file(f"{prefix}/{file.name}", file)}
            for file in sorted(folder.iterdir())
        }
    model = Model(
        id=id,
        tenant=caller.tenant,
        key_id=caller.key_id,
        name=Path(filename).stem or "model",
        model_type=reference.model_type,
        parameters=parameters,
        bytes=sum(file["bytes"] for file in files.values()),
        sha256=sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        storage_prefix=prefix,
        files=files,
        created_at=now(),
    )
    with database.writing() as session:
        session.add(model)
        leftovers.claim(session, model.storage_prefix)
    return model


def fetch(storage: Storage, model: Model, folder: Path, check: Check) -> None:
    """Download an uploaded model into `folder`; raises DamagedModel when a file is not what was uploaded, and whatever
    `check` does between two chunks."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, expected in model.files.items():
        if storage.fetch_file(f"{model.storage_prefix}/{path}", folder / path, check) != expected["sha256"]:
            raise DamagedModel(f"'{path}' of model '{model.id}' is damaged in storage; upload it again.", "model")


def find_uploaded(session: Session, tenant: str, id: str, param: str | None = None, *, keep: bool = False) -> Model:
    """With `keep` nobody deletes it before this transaction ends."""
    found = session.get(Model, id, with_for_update={"read": True} if keep else None)
    if found is None or found.tenant != tenant or found.deleted_at is not None:
        raise NotFound("model", id, param)
    return found


def list_uploaded(session: Session, tenant: str, after: str | None, limit: int) -> list[Model]:
    """Newest first; `limit` + 1 rows."""
    query = select(Model).where(Model.tenant == tenant, Model.deleted_at.is_(None))
    return newest_first(session, query, Model.id, after, limit)


def delete_uploaded(session: Session, model: Model) -> None:
    """Hide the model and let its files go; raises InUse while a live job needs it."""
    session.refresh(model, with_for_update=True)
    needed = select(Job.id).where(Job.tenant == model.tenant, Job.model == model.id, Job.status.in_(LIVE)).limit(1)
    if job := session.scalars(needed).one_or_none():
        raise InUse(f"Job '{job}' still needs this model; cancel the job or wait for its end.")
    if moves.changed(session, update(Model).where(Model.id == model.id).values(deleted_at=now())):
        leftovers.leave(session, model.storage_prefix)


def list_local(root: Path) -> Iterator[ModelReference]:
    """Every folder of the model root, or one level below, that a job may name."""
    for config in sorted([*root.glob(f"*/{CONFIG}"), *root.glob(f"*/*/{CONFIG}")]):
        with suppress(ModelNotFound, UnsupportedModel):
            yield find_model(str(config.parent.relative_to(root)), root=root)
