"""Who calls, and how often, is settled before a byte of the body is read."""

from __future__ import annotations

import logging
import time

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from api import errors
from api.callers import Callers
from jobs import limits
from jobs.errors import LimitReached, ServiceError
from jobs.keys import Caller
from jobs.settings import Settings

logger = logging.getLogger(__name__)

BROKER_SECONDS = 0.5
UNCOUNTED_SECONDS = 10.0


class Gate:
    """Middleware: `/v1` opens with a valid API key, and only as often as the key may call."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._rate = RequestRate(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")).startswith("/v1/"):
            request = Request(scope)
            try:
                request.state.caller = caller = await self._let_in(request)
                request.state.key_id, request.state.tenant = caller.key_id, caller.tenant
            except ServiceError as error:
                refusal = await errors.jactus_error(request, error)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _let_in(self, request: Request) -> Caller:
        callers: Callers = request.app.state.callers
        authorization = request.headers.get("authorization", "")
        caller = callers.remembered(authorization)
        if caller is None:
            caller = await run_in_threadpool(callers.find, authorization)
        if limit := self._rate.limit_of(caller):
            await run_in_threadpool(self._rate.count, caller, limit)
        return caller


class RequestRate:
    """Counts requests per key in the broker's Redis. While that is away, requests pass uncounted."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limiter: MovingWindowRateLimiter | None = None
        self._uncounted_until = 0.0

    def limit_of(self, caller: Caller) -> int:
        """Requests per minute; 0: any number."""
        return limits.in_force(caller.limits, self._settings).max_requests_per_minute or 0

    def count(self, caller: Caller, limit: int) -> None:
        """Raises LimitReached."""
        if time.monotonic() < self._uncounted_until:
            return
        item = RateLimitItemPerMinute(limit)
        try:
            if self._limit().hit(item, caller.key_id):
                return
            seconds = self._limit().get_window_stats(item, caller.key_id).reset_time - time.time()
        except StorageError as error:
            self._uncounted_until = time.monotonic() + UNCOUNTED_SECONDS
            logger.warning("requests are not counted for %.0f s, the broker is away: %s", UNCOUNTED_SECONDS, error)
            return
        message = f"This API key may send {limit} requests per minute; wait a little."
        raise LimitReached("rate_limited", message, max(1, round(seconds)))

    def _limit(self) -> MovingWindowRateLimiter:
        if self._limiter is None:
            timeouts = {"socket_timeout": BROKER_SECONDS, "socket_connect_timeout": BROKER_SECONDS}
            storage = RedisStorage(self._settings.broker_url, None, "jactus:rate", wrap_exceptions=True, **timeouts)
            self._limiter = MovingWindowRateLimiter(storage)
        return self._limiter
