"""Upload, look at, list, check and delete models."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, UploadFile

from api.dependencies import After, Here, Limit, Reader, Writer, page_of
from api.errors import responses
from api.limits import too_large
from jobs import limits, models, schemas, uploads

router = APIRouter(prefix="/v1/models", tags=["models"], responses=responses(401, 403, 422))


@router.post("", status_code=201, responses=responses(413))
def upload_model(
    caller: Writer,
    services: Here,
    file: Annotated[UploadFile, File(description="A zip of a transformers folder with safetensors weights.")],
) -> schemas.Model:
    """Upload a model. The archive is checked before it is kept; nothing in it is ever run."""
    if (file.size or 0) > services.settings.max_upload_bytes:
        raise too_large(services.settings.max_upload_bytes)
    name = uploads.file_name(file.filename or "", "file")
    with services.database.reading() as session:
        limits.check_storage(session, caller, services.settings, file.size or 0)
    with tempfile.NamedTemporaryFile(prefix=uploads.SCRATCH) as archive:
        shutil.copyfileobj(file.file, archive)
        archive.flush()
        model = models.receive(services.database, services.storage, caller, name, Path(archive.name))
    return schemas.Model.model_validate(model)


@router.post("/from-upload", status_code=201, responses=responses(404, 409, 413))
def create_from_upload(caller: Writer, services: Here, request: schemas.ModelFromUpload) -> schemas.Model:
    """Make a model of an archive that has arrived in parts. It is checked like any other; then the upload is gone."""
    with uploads.assembled(services, caller.tenant, request.upload) as (upload, archive, _):
        model = models.receive(services.database, services.storage, caller, upload.filename, archive)
    with services.database.writing() as session:
        uploads.drop(session, uploads.find_upload(session, caller.tenant, upload.id, "upload", lock=True))
    return schemas.Model.model_validate(model)


@router.get("")
def list_models(caller: Reader, services: Here, after: After = None, limit: Limit = 20) -> schemas.Page[schemas.Model]:
    """Your uploaded models, newest first."""
    with services.database.reading() as session:
        found = models.list_uploaded(session, caller.tenant, after, limit)
        return page_of(found, limit, schemas.Model.model_validate)


@router.get("/local")
def list_local_models(caller: Reader, services: Here) -> schemas.Page[schemas.LocalModel]:
    """The folders under this host's model root that jobs may name."""
    found = [
        schemas.LocalModel(name=reference.name, model_type=reference.model_type, bytes=reference.bytes or 0)
        for reference in models.list_local(services.settings.model_root)
    ]
    return schemas.Page(data=found, has_more=False)


@router.post("/preflight", responses=responses(404, 409, 413, 503))
def preflight_model(caller: Reader, services: Here, request: schemas.PreflightRequest) -> schemas.Preflight:
    """Whether a model can be used here, before it is downloaded: that it exists, may be read, and is supported."""
    with services.database.reading() as session:
        named = models.look_up(
            session, services.settings, caller.tenant, request.model, request.revision, request.secret
        )
    return services.planner.preflight(named, request.task)


@router.get("/{model_id}", responses=responses(404))
def get_model(caller: Reader, services: Here, model_id: str) -> schemas.Model:
    """One uploaded model with its files."""
    with services.database.reading() as session:
        return schemas.Model.model_validate(models.find_uploaded(session, caller.tenant, model_id))


@router.delete("/{model_id}", status_code=204, responses=responses(404, 409))
def delete_model(caller: Writer, services: Here, model_id: str) -> None:
    """Delete an uploaded model that no waiting or running job needs."""
    with services.database.writing() as session:
        models.delete_uploaded(session, models.find_uploaded(session, caller.tenant, model_id))
