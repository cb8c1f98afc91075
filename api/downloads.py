"""Files of the storage as answers: links on object storage, streams with ranges from a local folder."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from jobs.storage import Storage

NOSNIFF = {"X-Content-Type-Options": "nosniff"}


def download(
    request: Request, storage: Storage, key: str, media_type: str, headers: Mapping[str, str] = MappingProxyType({})
) -> Response:
    """Send an object, under `headers` where it is streamed; raises NotFound when it is not there."""
    storage.size_of(key)
    local = storage.local_path(key)
    if local is None:
        link = storage.signed_url(key, "HEAD" if request.method == "HEAD" else "GET")
        return RedirectResponse(link, 307, {"Cache-Control": "no-store"})
    if is_known(request, headers.get("ETag")):
        return Response(status_code=304, headers=headers)
    return _LocalFile(local, media_type=media_type, headers={**headers, **NOSNIFF})


def attachment(filename: str) -> dict[str, str]:
    """The header that names a download; any name is safe in it."""
    quoted = quote(filename, safe="")
    return {"Content-Disposition": f"attachment; filename=\"{quoted}\"; filename*=utf-8''{quoted}"}


def is_known(request: Request, etag: str | None) -> bool:
    """Whether the client has this version already."""
    if etag is None:
        return False
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return "*" in known or etag in known


class _LocalFile(FileResponse):
    """Refuses a range in the shape of every other error."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unless_refused(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = {k.decode(): v.decode() for k, v in message["headers"] if k == b"content-range"}
                raise HTTPException(message["status"], f"The file has no such range of bytes: {wanted!r}.", headers)
            await send(message)

        wanted = Request(scope).headers.get("range", "")
        await super().__call__(scope, receive, send_unless_refused)
