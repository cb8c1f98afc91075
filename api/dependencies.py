"""What every endpoint may ask for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request
from fastapi.security import HTTPBearer

from api.callers import Callers
from jobs.errors import Forbidden
from jobs.keys import Caller
from jobs.schemas import Item, Page, Scope
from jobs.services import Services

Row = TypeVar("Row")

MAX_NUMBER = 2**31 - 1
"""What a column of numbers holds."""

bearer = HTTPBearer(auto_error=False, description="Your API key.")


async def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def get_callers(request: Request) -> Callers:
    callers: Callers = request.app.state.callers
    return callers


async def get_caller(request: Request, _: Annotated[object, Depends(bearer)]) -> Caller:
    """The caller, whom the gate let in."""
    caller: Caller = request.state.caller
    return caller


SignedIn = Annotated[Caller, Depends(get_caller)]


def needs(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """A dependency: the caller, whose key must have the scope."""

    async def check(request: Request, _: Annotated[object, Depends(bearer)]) -> Caller:
        caller: Caller = request.state.caller
        if scope not in caller.scopes:
            raise Forbidden(f"This API key lacks the scope '{scope}'; ask your admin for one that has it.")
        return caller

    return check


def page_of(found: Sequence[Row], limit: int, describe: Callable[[Row], Item]) -> Page[Item]:
    """The first `limit` rows; one row more in `found` says that there are more."""
    return Page(data=[describe(row) for row in found[:limit]], has_more=len(found) > limit)


Reader = Annotated[Caller, Depends(needs("read"))]
Writer = Annotated[Caller, Depends(needs("write"))]
Admin = Annotated[Caller, Depends(needs("admin"))]
Here = Annotated[Services, Depends(get_services)]
KnownCallers = Annotated[Callers, Depends(get_callers)]
After = Annotated[str | None, Query(max_length=200, description="The last id of the page before.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Items per page.")]
