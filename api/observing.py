"""What every request leaves behind: an id, a log line, a count and a span."""

from __future__ import annotations

import logging
import re
import secrets
import time

from opentelemetry.trace import Span, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from api.metrics import RequestMetrics
from jobs import tracing

logger = logging.getLogger("jactus.access")

USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observing:
    """The outermost middleware. Routes are known by their templates, so that neither ids nor queries are told."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(headers.get("x-request-id", ""))
        clear_contextvars()
        bind_contextvars(request_id=request_id)
        status, started = 500, time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        method = scope["method"] if scope["method"] in METHODS else "other"
        with tracing.span(method, parent=headers.get("traceparent"), kind="server", request_id=request_id) as span:
            try:
                await self._app(scope, receive, answer)
            finally:
                route, seconds = _template(scope), time.perf_counter() - started
                _describe(span, method, route, status)
                self._metrics.count(method, route, status, seconds)
                who = {name: state[name] for name in ("key_id", "tenant") if name in state}
                line = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4), **who}
                logger.info("request", extra=line)


def _request_id(given: str) -> str:
    """The caller's own, if it is harmless."""
    return given if USABLE_ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"


def _template(scope: Scope) -> str:
    """Such as `/v1/jobs/{job_id}`."""
    return getattr(scope.get("route"), "path", "unmatched") or "/"


def _describe(span: Span, method: str, route: str, status: int) -> None:
    span.update_name(f"{method} {route}")
    span.set_attributes(
        {"http.request.method": method, "http.route": route, "http.response.status_code": status},
    )
    if status >= 500:
        span.set_status(StatusCode.ERROR)
