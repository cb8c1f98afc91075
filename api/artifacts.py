"""Download what a job published, file by file or a checkpoint at once."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.archive import Archive
from api.dependencies import MAX_NUMBER, Here, Limit, Reader, page_of
from api.downloads import NOSNIFF, attachment, download, is_known
from api.errors import responses
from jobs import leases, schemas, store
from jobs.errors import Lost, NotFound
from jobs.storage import Storage
from jobs.tables import Artifact

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["artifacts"], responses=responses(401, 403, 422))

AfterPath = Annotated[str, Query(max_length=1000, description="The last path of the page before.")]
Number = Annotated[int, Path(ge=1, le=MAX_NUMBER, description="Attempts count from 1.")]
TAR = "application/x-tar"

Answers = dict[int | str, dict[str, Any]]
LINK: Answers = {307: {"description": "A presigned link, where files lie in object storage."}}
BINARY = {"schema": {"type": "string", "format": "binary"}}
RANGES = "multipart/byteranges"
UNCHANGED: Answers = {304: {"description": "The client has it already, by If-None-Match."}}


def _file(media_type: str) -> Answers:
    """The file, one range of it, or several."""
    part = {
        "description": "The range or the ranges that were asked for.",
        "content": {media_type: BINARY, RANGES: BINARY},
    }
    return {200: {"content": {media_type: BINARY}}, 206: part}


@router.get("/artifacts", responses=responses(404))
def list_artifacts(
    caller: Reader, services: Here, job_id: str, after: AfterPath = "", limit: Limit = 100
) -> schemas.Page[schemas.Artifact]:
    """Every published file with its size and SHA-256, by path; empty until the job has succeeded."""
    with services.database.reading() as session:
        store.find(session, caller.tenant, job_id)
        return page_of(store.artifacts(session, job_id, after, limit), limit, schemas.Artifact.model_validate)


@router.head("/artifacts/{path:path}", include_in_schema=False)
@router.get(
    "/artifacts/{path:path}",
    response_class=Response,
    responses={**_file("application/octet-stream"), **LINK, **UNCHANGED, **responses(404, 410, 416, 503)},
)
def get_artifact(caller: Reader, services: Here, request: Request, job_id: str, path: str) -> Response:
    """One file: streamed with ranges from local storage, a redirect to a presigned link on object storage."""
    with services.database.reading() as session:
        store.find(session, caller.tenant, job_id)
        file = store.artifact(session, job_id, path)
    headers = {"ETag": f'"{file.sha256}"'} | attachment(PurePosixPath(path).name)
    try:
        return download(request, services.storage, file.storage_key, "application/octet-stream", headers)
    except NotFound as error:
        raise _lost(path) from error


@router.head("/archives/{folder}.tar", include_in_schema=False)
@router.get(
    "/archives/{folder}.tar",
    response_class=Response,
    responses={200: {"content": {TAR: BINARY}}, **UNCHANGED, **responses(404, 410, 503)},
)
def get_archive(caller: Reader, services: Here, request: Request, job_id: str, folder: str) -> Response:
    """A checkpoint, such as budget-0.5, as one tar file; always the same bytes."""
    with services.database.reading() as session:
        job = store.find(session, caller.tenant, job_id)
        files = store.folder(session, job_id, folder)
    assert job.finished_at is not None, "a job with artifacts has succeeded"
    archive = Archive(files, job.finished_at)
    headers = {"ETag": archive.etag} | attachment(f"{job_id}-{folder}.tar")
    if is_known(request, archive.etag):
        return Response(status_code=304, headers=headers)
    for file in files:
        _check_whole(services.storage, file)
    headers |= NOSNIFF | {"Content-Length": str(archive.bytes)}
    if request.method == "HEAD":
        return Response(headers=headers, media_type=TAR)
    return StreamingResponse(archive.chunks(services.storage), headers=headers, media_type=TAR)


@router.head("/attempts/{number}/log", include_in_schema=False)
@router.get(
    "/attempts/{number}/log",
    response_class=Response,
    responses={**_file("text/plain"), **LINK, **responses(404, 416, 503)},
)
def get_log(caller: Reader, services: Here, request: Request, job_id: str, number: Number) -> Response:
    """What a run wrote, so far or until its end: as text with ranges, or a redirect as for artifacts."""
    with services.database.reading() as session:
        store.find(session, caller.tenant, job_id)
        store.attempt(session, job_id, number)
    try:
        return download(request, services.storage, leases.log_of(job_id, number), "text/plain")
    except NotFound as error:
        raise NotFound("log", f"attempt-{number}.log") from error


def _check_whole(storage: Storage, file: Artifact) -> None:
    """Before the first byte is sent, as there is no way to say sorry after it."""
    try:
        if storage.size_of(file.storage_key) == file.bytes:
            return
    except NotFound as error:
        raise _lost(file.path) from error
    raise _lost(file.path)


def _lost(path: str) -> Lost:
    return Lost(f"The storage has lost '{path}'; run the job again.")
