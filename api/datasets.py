"""Upload, look at, list and delete datasets."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from api.dependencies import After, Here, Limit, Reader, Writer, page_of
from api.errors import responses
from api.limits import too_large
from jactus_core.tasks import TaskName
from jobs import datasets, leftovers, limits, schemas, secrets, uploads
from jobs.errors import InvalidParameter
from jobs.schemas.common import Name
from jobs.services import Services
from jobs.storage import CHUNK_BYTES
from jobs.tables import Dataset

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], responses=responses(401, 403, 422))

COLUMNS = TypeAdapter(dict[Name, Name])


@router.post("", status_code=201, responses=responses(413, 429))
def upload_dataset(
    caller: Writer,
    services: Here,
    file: Annotated[UploadFile, File(description="CSV with a header, JSON lines, Parquet, or a zip of images.")],
    task: Annotated[TaskName, Form(description="What the rows are for.")] = "text-classification",
    columns: Annotated[
        str, Form(max_length=4000, description="Columns by role where they are named otherwise, as a JSON object.")
    ] = "{}",
) -> schemas.Dataset:
    """Upload a dataset. The whole file is checked for its task before it is kept."""
    if (file.size or 0) > services.settings.max_upload_bytes:
        raise too_large(services.settings.max_upload_bytes)
    name, mapping = uploads.file_name(file.filename or "", "file"), _columns(columns)
    with tempfile.TemporaryDirectory(prefix=uploads.SCRATCH) as folder:
        path = Path(folder) / "upload"
        sha256 = uploads.write_hashed(iter(lambda: file.file.read(CHUNK_BYTES), b""), path)
        dataset = datasets.check_file(caller, name, path, task, mapping, sha256)
        with services.database.reading() as session:
            limits.check_storage(session, caller, services.settings, dataset.bytes)
        _put(services, dataset, path)
    with services.database.writing() as session:
        return _keep(session, dataset)


@router.post("/from-upload", status_code=201, responses=responses(404, 409, 413))
def create_from_upload(caller: Writer, services: Here, request: schemas.DatasetFromUpload) -> schemas.Dataset:
    """Make a dataset of a file that has arrived in parts. It is checked like any other; then the upload is gone."""
    with uploads.assembled(services, caller.tenant, request.upload) as (upload, path, sha256):
        dataset = datasets.check_file(caller, upload.filename, path, request.task, request.columns, sha256)
        _put(services, dataset, path)
    with services.database.writing() as session:
        uploads.drop(session, uploads.find_upload(session, caller.tenant, upload.id, "upload", lock=True))
        return _keep(session, dataset)


@router.post("/hub", status_code=201, responses=responses(404, 413))
def create_from_hub(caller: Writer, services: Here, request: schemas.DatasetFromHub) -> schemas.Dataset:
    """Use a dataset of the hub, as it is at its newest commit now. It is loaded and checked like any other."""
    token = None
    if request.secret is not None:
        with services.database.reading() as session:
            token = secrets.reveal(session, services.settings, caller.tenant, request.secret)
    dataset = datasets.check_hub(caller, request, token, services.settings.max_large_upload_bytes)
    with services.database.writing() as session:
        return _keep(session, dataset)


@router.get("")
def list_datasets(
    caller: Reader, services: Here, after: After = None, limit: Limit = 20
) -> schemas.Page[schemas.Dataset]:
    """Your datasets, newest first."""
    with services.database.reading() as session:
        found = datasets.list_datasets(session, caller.tenant, after, limit)
        return page_of(found, limit, schemas.Dataset.model_validate)


@router.get("/{dataset_id}", responses=responses(404))
def get_dataset(caller: Reader, services: Here, dataset_id: str) -> schemas.Dataset:
    """One dataset with its profile."""
    with services.database.reading() as session:
        return schemas.Dataset.model_validate(datasets.find_dataset(session, caller.tenant, dataset_id))


@router.delete("/{dataset_id}", status_code=204, responses=responses(404, 409))
def delete_dataset(caller: Writer, services: Here, dataset_id: str) -> None:
    """Delete a dataset that no waiting or running job needs."""
    with services.database.writing() as session:
        datasets.delete_dataset(session, datasets.find_dataset(session, caller.tenant, dataset_id))


def _put(services: Services, dataset: Dataset, file: Path) -> None:
    """Store the file, which goes again unless the dataset is kept."""
    assert dataset.storage_key is not None
    with services.database.writing() as session:
        leftovers.expect(session, datasets.folder_of(dataset.id))
    services.storage.put_file(dataset.storage_key, file)


def _keep(session: Session, dataset: Dataset) -> schemas.Dataset:
    session.add(dataset)
    session.flush()
    leftovers.claim(session, datasets.folder_of(dataset.id))
    return schemas.Dataset.model_validate(dataset)


def _columns(given: str) -> dict[str, str]:
    try:
        return COLUMNS.validate_python(json.loads(given))
    except (ValueError, RecursionError, ValidationError) as error:
        raise InvalidParameter(
            'It must be a JSON object of column names by role, such as {"text": "sentence"}.', "columns"
        ) from error
