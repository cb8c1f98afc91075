"""Send a large file in parts, and take up again what was interrupted."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.dependencies import Here, Reader, Writer
from api.errors import responses
from jobs import limits, schemas, uploads
from jobs.errors import InvalidParameter
from jobs.keys import Caller
from jobs.services import Services
from jobs.tables import Upload

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], responses=responses(401, 403, 422))

RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("", status_code=201, responses=responses(413))
def create_upload(caller: Writer, services: Here, request: schemas.UploadCreate, response: Response) -> schemas.Upload:
    """Announce a file. Send its parts next, in any order, then make a dataset or a model of it."""
    with services.database.writing() as session:
        limits.check_storage(session, caller, services.settings, request.bytes)
        upload = uploads.create_upload(session, caller, request, services.settings)
        described = uploads.describe(session, upload, services.settings)
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    return described


@router.get("/{upload_id}", responses=responses(404))
def get_upload(caller: Reader, services: Here, upload_id: str) -> schemas.Upload:
    """One upload with the parts that have arrived."""
    with services.database.reading() as session:
        return uploads.describe(session, uploads.find_upload(session, caller.tenant, upload_id), services.settings)


@router.put("/{upload_id}/parts/{number}", responses=responses(404, 413), openapi_extra=RAW_BODY)
async def put_part(
    caller: Writer,
    services: Here,
    upload_id: str,
    number: Annotated[int, PathParameter(description="From 1.")],
    request: Request,
) -> schemas.UploadPart:
    """Send a part as the plain body. Every part but the last has exactly `part_bytes`; sent again, it is replaced."""
    upload = await run_in_threadpool(_find, services, caller, upload_id)
    size = uploads.size_of_part(upload, number, services.settings)
    with tempfile.TemporaryDirectory(prefix=uploads.SCRATCH) as folder:
        file = Path(folder) / "part"
        sha256 = await _receive(request, file, size, number)
        return await run_in_threadpool(uploads.keep_part, services, upload, number, file, sha256)


@router.delete("/{upload_id}", status_code=204, responses=responses(404))
def delete_upload(caller: Writer, services: Here, upload_id: str) -> None:
    """Forget an upload and its parts."""
    with services.database.writing() as session:
        uploads.drop(session, uploads.find_upload(session, caller.tenant, upload_id, lock=True))


def _find(services: Services, caller: Caller, id: str) -> Upload:
    with services.database.reading() as session:
        return uploads.find_upload(session, caller.tenant, id)


async def _receive(request: Request, file: Path, size: int, number: int) -> str:
    """Write the body, which must have `size` bytes; returns its SHA-256."""
    digest, received = hashlib.sha256(), 0
    try:
        with file.open("wb") as handle:
            async for chunk in request.stream():
                received += len(chunk)
                if received > size:
                    break
                digest.update(chunk)
                await run_in_threadpool(handle.write, chunk)
    except ClientDisconnect as error:
        raise HTTPException(400, f"The connection broke before part {number} was whole; send it again.") from error
    if received != size:
        raise InvalidParameter(f"Part {number} must have exactly {size:,} bytes.", "number")
    return digest.hexdigest()
