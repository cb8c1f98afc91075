"""Every error leaves in one shape: `{"error": {type, code, message, param, request_id}}`.

A client that accepts `application/problem+json` gets RFC 9457 instead.
"""

from __future__ import annotations

import http
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from jactus_core.errors import JactusError
from jobs.errors import ServiceError
from jobs.schemas import ErrorBody, ErrorResponse

logger = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
TYPES = {401: "authentication_error", 404: "not_found_error", 409: "conflict_error"}
CODES = {404: "route_not_found", 405: "method_not_allowed", 413: "payload_too_large"}
UNUSABLE = 422
MAX_MESSAGE = 500  # characters; what the caller sent is part of some messages
MAX_PARAM = 200


def install(app: FastAPI) -> None:
    """Give `app` request ids and the error shape."""
    app.middleware("http")(_with_request_id)
    app.add_exception_handler(JactusError, _jactus_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(Exception, _unexpected_error)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the errors that an endpoint may answer with."""
    return {status: {"model": ErrorResponse, "description": http.HTTPStatus(status).phrase} for status in statuses}


async def _with_request_id(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    request.state.request_id = f"req_{secrets.token_hex(8)}"
    response = await call_next(request)
    response.headers["X-Request-ID"] = request.state.request_id
    return response


async def _jactus_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, JactusError)
    status = error.status if isinstance(error, ServiceError) else UNUSABLE
    return _answer(request, status, error.code, error.message, error.param)


async def _validation_error(request: Request, error: Exception) -> Response:
    """Name the first offending field and what was sent; the value itself is cut short."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [] if first["type"] == "json_invalid" else [str(part) for part in first["loc"][1:]]
    param = ".".join(where) or None
    given = repr(first.get("input"))
    message = f"{param or 'The request body'}: {first['msg']}"
    if first["type"] not in ("missing", "json_invalid") and len(given) <= 100:
        message += f"; got {given}"
    return _answer(request, UNUSABLE, "invalid_parameter", message + ".", param)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "invalid_request")
    message = str(error.detail).rstrip(".") + "."
    return _answer(request, error.status_code, code, message, None, error.headers)


async def _unstorable(request: Request, error: Exception) -> Response:
    """What a database cannot hold, such as PostgreSQL a NUL character, no name or id ever was."""
    message = "A value of the request holds a character or a number that cannot be stored."
    return _answer(request, UNUSABLE, "invalid_parameter", message, None)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    logger.error("request %s failed", request.state.request_id, exc_info=error)
    message = "Something went wrong on the server; its log has the details under this request id."
    return _answer(request, 500, "internal_error", message, None)


def _answer(
    request: Request,
    status: int,
    code: str,
    message: str,
    param: str | None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    message, param = _cut(message, MAX_MESSAGE), param and _cut(param, MAX_PARAM)
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    request_id = request.state.request_id
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else headers
    if PROBLEM in request.headers.get("accept", ""):
        title = http.HTTPStatus(status).phrase
        problem = {"type": "about:blank", "title": title, "status": status, "detail": message}
        extra = {"code": code, "param": param, "request_id": request_id}
        return JSONResponse(problem | extra, status, headers, PROBLEM)
    body = ErrorBody(type=kind, code=code, message=message, param=param, request_id=request_id)
    return JSONResponse(ErrorResponse(error=body).model_dump(), status, headers)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 2] + "…."
