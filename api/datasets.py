"""Upload, look at and list datasets."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile

from api.dependencies import After, Here, Limit, Tenant, page_of
from api.errors import responses
from api.limits import too_large
from jobs import datasets, schemas

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], responses=responses(401, 422))
Column = Annotated[str, Form(min_length=1, max_length=200)]


@router.post("", status_code=201, responses=responses(413))
def upload_dataset(
    tenant: Tenant,
    services: Here,
    file: Annotated[UploadFile, File(description="CSV with a header, or JSON lines; UTF-8.")],
    text_column: Column = "text",
    label_column: Column = "label",
) -> schemas.Dataset:
    """Upload a labelled text set. The whole file is checked before it is kept."""
    if (file.size or 0) > services.settings.max_upload_bytes:
        raise too_large(services.settings.max_upload_bytes)
    with tempfile.TemporaryDirectory(prefix="jactus-upload-") as folder:
        path = Path(folder) / "upload"
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)
        dataset = datasets.check_file(tenant, Path(file.filename or "").name, path, text_column, label_column)
        services.storage.put_file(dataset.storage_key, path)
    try:
        with services.database.writing() as session:
            session.add(dataset)
    except Exception:
        services.storage.delete_under(f"datasets/{dataset.id}")
        raise
    return schemas.Dataset.model_validate(dataset)


@router.get("")
def list_datasets(
    tenant: Tenant, services: Here, after: After = None, limit: Limit = 20
) -> schemas.Page[schemas.Dataset]:
    """Your datasets, newest first."""
    with services.database.reading() as session:
        found = datasets.list_datasets(session, tenant, after, limit)
        return page_of(found, limit, schemas.Dataset.model_validate)


@router.get("/{dataset_id}", responses=responses(404))
def get_dataset(tenant: Tenant, services: Here, dataset_id: str) -> schemas.Dataset:
    """One dataset with its rows per class."""
    with services.database.reading() as session:
        return schemas.Dataset.model_validate(datasets.find_dataset(session, tenant, dataset_id))
