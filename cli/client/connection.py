"""Requests to one service: JSON in, schemas out, and sent again when that is safe."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import httpx2
from pydantic import BaseModel

from cli.client.errors import ApiError, Away, Unreachable
from jobs import schemas

Shape = TypeVar("Shape", bound=BaseModel)

PAGE = 100
ATTEMPTS = 5
PAUSE_SECONDS = 0.5
"""Before the second attempt; twice as long before each further one."""
LONGEST_PAUSE_SECONDS = 30.0
ANSWER_SECONDS = 60.0
SAFE_TO_REPEAT = frozenset({"GET", "PUT", "DELETE"})
LIMITED = 429
AWAY = frozenset({502, 503, 504})
GONE = 404


class Connection:
    """Sends an API key with every request to the service, and to nobody else."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url
        self._http = httpx2.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=ANSWER_SECONDS, follow_redirects=True
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, shape: type[Shape], method: str, path: str, **options: Any) -> Shape:
        """What `send` gets, as one of the contract's shapes."""
        return shape.model_validate_json((await self.send(method, path, **options)).content)

    async def send(self, method: str, path: str, *, repeatable: bool = False, **options: Any) -> httpx2.Response:
        """An answer that is a success; raises ApiError or Unreachable.

        A request goes out again, after a pause, when it cannot have been carried out, or when carrying it out twice is
        the same as once: `repeatable`, or by its method.
        """
        repeatable = repeatable or method in SAFE_TO_REPEAT
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = await self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                nothing_was_sent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
                if attempt == ATTEMPTS or not (repeatable or nothing_was_sent):
                    raise Unreachable(f"No answer from {self.url}: {error or type(error).__name__}.") from error
                await anyio.sleep(pause(attempt))
                continue
            may_pass = answer.status_code == LIMITED or (repeatable and answer.status_code in AWAY)
            if may_pass and attempt < ATTEMPTS:
                await anyio.sleep(_wanted_pause(answer) or pause(attempt))
                continue
            if method == "DELETE" and attempt > 1 and answer.status_code == GONE:
                return answer  # by an attempt whose answer was lost
            raise_for_error(answer)
            return answer
        raise AssertionError("the last attempt returns or raises")

    @asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """An answer whose body is still to come; raises ApiError, as Away, or httpx2.TransportError at any time."""
        async with self._http.stream("GET", path, headers=headers) as answer:
            if not answer.is_success:
                await answer.aread()
            raise_for_error(answer)
            yield answer

    async def pages(
        self, shape: type[Shape], path: str, cursor: str = "id", params: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Shape]:
        """Every item of a list, page by page as they are asked for."""
        given: dict[str, Any] = {**(params or {}), "limit": PAGE}
        while True:
            page = await self.ask(schemas.Page[shape], "GET", path, params=given)  # type: ignore[valid-type]
            for item in page.data:
                yield item
            if not page.has_more:
                return
            given["after"] = getattr(page.data[-1], cursor)


def pause(attempt: int) -> float:
    """Seconds to wait after that attempt; no two clients wait alike."""
    return min(PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS) * random.uniform(0.75, 1.25)


def _wanted_pause(answer: httpx2.Response) -> float | None:
    """What the service asks for, within reason."""
    wanted = answer.headers.get("Retry-After", "")
    return min(float(wanted), LONGEST_PAUSE_SECONDS) if wanted.isdigit() else None


def raise_for_error(answer: httpx2.Response) -> None:
    """Raise ApiError unless the answer, already read, is a success."""
    if answer.is_success:
        return
    try:
        error = schemas.ErrorResponse.model_validate_json(answer.content).error
    except ValueError:
        error = schemas.ErrorBody(type="server_error", code="unexpected_answer", message=answer.text[:200])
    kind = Away if answer.status_code in AWAY else ApiError
    raise kind(answer.status_code, error)
