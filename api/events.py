"""What happened to a job: as a page of JSON, or as a stream while it happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.dependencies import MAX_NUMBER, Here, Limit, Reader, page_of
from api.errors import responses
from jobs import schemas, store
from jobs.errors import NotFound
from jobs.services import Services
from jobs.states import FINAL

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["jobs"], responses=responses(401, 403, 422))

EVENT_STREAM = "text/event-stream"
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second is for nginx
POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 15
BATCH = 100


@router.get(
    "",
    response_model=schemas.Page[schemas.Event],
    responses={
        **responses(404),
        200: {"content": {EVENT_STREAM: {}}},
        204: {"description": "A stream of a final job, all of whose events are told: do not connect again."},
    },
)
def job_events(
    caller: Reader,
    services: Here,
    request: Request,
    job_id: str,
    after: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="Only events past this number.")] = 0,
    limit: Limit = 100,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_NUMBER, description="Where a broken stream goes on.")
    ] = None,
) -> Response | schemas.Page[schemas.Event]:
    """A page of events, or with `Accept: text/event-stream` all of them as they come, until the job is final."""
    with services.database.reading() as session:
        job = store.find(session, caller.tenant, job_id)
        if EVENT_STREAM not in request.headers.get("accept", ""):
            return page_of(store.events(session, job_id, after, limit), limit, schemas.EVENT.validate_python)
    start = after if last_event_id is None else last_event_id
    if job.status in FINAL and job.last_event <= start:
        return Response(status_code=204)
    return StreamingResponse(_stream(services, caller.tenant, job_id, start), 200, STREAM_HEADERS, EVENT_STREAM)


async def _stream(services: Services, tenant: str, job_id: str, after: int) -> AsyncIterator[bytes]:
    """New events as they appear; ends when the job is final and everything is told, or when it is deleted."""
    said_something = time.monotonic()
    while True:
        try:
            batch, over = await run_in_threadpool(_news, services, tenant, job_id, after)
        except NotFound:
            return
        for event in batch:
            after = event.number
            yield format_sse_event(data_str=event.model_dump_json(), event=event.type, id=str(event.number))
        if batch:
            said_something = time.monotonic()
            continue
        if over:
            return
        if time.monotonic() - said_something > HEARTBEAT_SECONDS:
            yield KEEPALIVE_COMMENT
            said_something = time.monotonic()
        await asyncio.sleep(POLL_SECONDS)


def _news(services: Services, tenant: str, job_id: str, after: int) -> tuple[list[schemas.Event], bool]:
    """Events past `after`, and whether the job was final before they were read."""
    with services.database.reading() as session:
        over = store.find(session, tenant, job_id).status in FINAL
        return [schemas.EVENT.validate_python(event) for event in store.events(session, job_id, after, BATCH)], over
