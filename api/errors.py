"""Every error leaves in one shape: `{"error": {type, code, message, param, request_id}}`.

A client that accepts `application/problem+json` gets RFC 9457 instead.
"""

from __future__ import annotations

import http
import logging
import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from jactus_core.errors import JactusError
from jobs.errors import LimitReached, ServiceError
from jobs.schemas import ErrorBody, ErrorResponse

logger = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
CODES = {404: "route_not_found", 405: "method_not_allowed", 413: "payload_too_large", 422: "invalid_parameter"}
UNUSABLE = 422
HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    429: {"Retry-After": {"required": True, "description": "Seconds to wait.", "schema": {"type": "integer"}}},
}
MAX_MESSAGE = 500  # characters; what the caller sent is part of some messages
MAX_PARAM = 200
GIVEN = reprlib.Repr()  # shows what the caller sent, cut short and however deep
GIVEN.maxlevel, GIVEN.maxstring, GIVEN.maxlong, GIVEN.maxother = 2, 60, 40, 60


class ProblemDetails(BaseModel):
    """An error as RFC 9457 has it, for clients that accept `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None = None
    request_id: str | None = None


def install(app: FastAPI) -> None:
    """Give `app` the error shape, and its contract the schema that no endpoint brings along."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        document["components"]["schemas"][ProblemDetails.__name__] = ProblemDetails.model_json_schema()
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation says
    app.add_exception_handler(JactusError, jactus_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(UnicodeEncodeError, _unstorable)
    app.add_exception_handler(Exception, _unexpected_error)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the errors that an endpoint may answer with."""
    problem = {PROBLEM: {"schema": {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}}}
    return {
        status: {
            "model": ErrorResponse,
            "description": http.HTTPStatus(status).phrase,
            "content": problem,
            "headers": HEADERS.get(status, {}),
        }
        for status in statuses
    }


def keep_quiet(request: Request) -> None:
    """A dependency of endpoints that take secrets: no refusal shows what was sent."""
    request.state.quiet = True


async def jactus_error(request: Request, error: Exception) -> Response:
    """The answer to a refusal of ours."""
    assert isinstance(error, JactusError)
    status = error.status if isinstance(error, ServiceError) else UNUSABLE
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, LimitReached) else None
    return _answer(request, status, error.code, error.message, error.param, headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    """Name the first offending field and what was sent; the value itself is cut short."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [] if first["type"] == "json_invalid" else [str(part) for part in first["loc"][1:]]
    param = ".".join(where) or None
    given = GIVEN.repr(first.get("input"))
    message = f"{param or 'The request body'}: {first['msg']}"
    quiet = getattr(request.state, "quiet", False)
    if first["type"] not in ("missing", "json_invalid") and len(given) <= 100 and not quiet:
        message += f"; got {given}"
    return _answer(request, UNUSABLE, "invalid_parameter", message + ".", param)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = UNUSABLE if error.status_code == 400 else error.status_code  # the framework could not parse the body
    message = str(error.detail).rstrip(".") + "."
    headers = {"Allow": ", ".join(_allowed(request))} if status == 405 else error.headers
    return _answer(request, status, CODES.get(status, "invalid_request"), message, None, headers)


def _allowed(request: Request) -> list[str]:
    """The methods of every route of this path; the framework names only those of the first."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    found = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path)]
    return sorted({method for route in found if route.path == found[0].path for method in route.methods or ()})


async def _unstorable(request: Request, error: Exception) -> Response:
    """What cannot be stored, such as half a surrogate pair or in PostgreSQL a NUL, no name or id ever was."""
    message = "A value of the request holds a character or a number that cannot be stored."
    return _answer(request, UNUSABLE, "invalid_parameter", message, None)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    """Answered outside of every middleware, so that the header is not there yet."""
    logger.error("the request failed", exc_info=error)
    message = "Something went wrong on the server; its log has the details under this request id."
    headers = {"X-Request-ID": request.state.request_id}
    return _answer(request, 500, "internal_error", message, None, headers)


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
        problem = ProblemDetails(
            type="about:blank",
            title=http.HTTPStatus(status).phrase,
            status=status,
            detail=message,
            code=code,
            param=param,
            request_id=request_id,
        )
        return JSONResponse(problem.model_dump(), status, headers, PROBLEM)
    body = ErrorBody(type=kind, code=code, message=message, param=param, request_id=request_id)
    return JSONResponse(ErrorResponse(error=body).model_dump(), status, headers)


def _cut(text: str, length: int) -> str:
    """At most `length` characters, all of which can be encoded."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= length else text[: length - 2] + "…."
