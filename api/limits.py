"""Bodies that are too large are refused while they arrive, in the shape of every other error."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.settings import Settings

FORM_OVERHEAD_BYTES = 64 * 2**10
TAKES_FILES = re.compile(r"/v1/(datasets|models)/?")
PART = re.compile(r"/v1/uploads/[^/]+/parts/[^/]+")


class BodyLimit:
    """Middleware: a file with the form around it, a part of a file, or JSON, each within its own limit.

    It counts what arrives, whether or not the length is announced. Starlette's own limit answers in plain text.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced, received = Headers(scope=scope).get("content-length", ""), 0
        what, limit, overhead = self._limit(scope["method"], scope["path"])
        most = limit + overhead

        async def limited() -> Message:
            nonlocal received
            if announced.isdecimal() and int(announced) > most:
                raise too_large(limit, what)
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise too_large(limit, what)
            return message

        await self._app(scope, limited, send)

    def _limit(self, method: str, path: str) -> tuple[str, int, int]:
        """What the body is, how many bytes it may have, and how many around it."""
        if method == "POST" and TAKES_FILES.fullmatch(path):
            return "file", self._settings.max_upload_bytes, FORM_OVERHEAD_BYTES
        if method == "PUT" and PART.fullmatch(path):
            return "part", self._settings.upload_part_bytes, 0
        return "body", self._settings.max_json_bytes, 0


def too_large(max_bytes: int, what: str = "file") -> HTTPException:
    return HTTPException(413, f"The {what} is too large; this service takes up to {max_bytes:,} bytes.")
