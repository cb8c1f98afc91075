"""Download what a job published."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, RedirectResponse

from api.dependencies import Here, Tenant
from api.errors import responses
from jobs import schemas, store

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["artifacts"], responses=responses(401, 422))


@router.get("", responses=responses(404))
def list_artifacts(tenant: Tenant, services: Here, job_id: str) -> schemas.Page[schemas.Artifact]:
    """Every published file with its size and SHA-256; empty until the job has succeeded."""
    with services.database.reading() as session:
        store.find(session, tenant, job_id)
        files = [schemas.Artifact.model_validate(file) for file in store.artifacts(session, job_id)]
    return schemas.Page(data=files, has_more=False)


@router.get("/{path:path}", response_class=Response, responses={307: {}, **responses(404)})
def get_artifact(tenant: Tenant, services: Here, job_id: str, path: str) -> Response:
    """One file: streamed with ranges from local storage, a redirect to a presigned link on object storage."""
    with services.database.reading() as session:
        store.find(session, tenant, job_id)
        file = store.artifact(session, job_id, path)
    local = services.storage.local_path(file.storage_key)
    if local is None:
        return RedirectResponse(services.storage.signed_url(file.storage_key), 307)
    headers = {"ETag": f'"{file.sha256}"', "X-Content-Type-Options": "nosniff"}
    return FileResponse(local, filename=local.name, media_type="application/octet-stream", headers=headers)
