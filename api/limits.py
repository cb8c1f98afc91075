"""Bodies that are too large are refused while they arrive, in the shape of every other error."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FORM_OVERHEAD_BYTES = 64 * 2**10


class BodyLimit:
    """Middleware: at most `max_file_bytes` and the form around them, whether or not the length is announced.

    Starlette's own limit answers in plain text.
    """

    def __init__(self, app: ASGIApp, max_file_bytes: int) -> None:
        self._app = app
        self._max_file_bytes = max_file_bytes
        self._max_bytes = max_file_bytes + FORM_OVERHEAD_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        received = 0

        async def limited() -> Message:
            nonlocal received
            if announced.isdecimal() and int(announced) > self._max_bytes:
                raise too_large(self._max_file_bytes)
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise too_large(self._max_file_bytes)
            return message

        await self._app(scope, limited, send)


def too_large(max_file_bytes: int) -> HTTPException:
    return HTTPException(413, f"The file is too large; this service takes up to {max_file_bytes:,} bytes.")
