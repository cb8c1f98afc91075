"""What every endpoint may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs import keys
from jobs.errors import Unauthorized
from jobs.schemas import Item, Page
from jobs.services import Services

Row = TypeVar("Row")

bearer = HTTPBearer(auto_error=False, description="Your API key.")


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def get_tenant(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    services: Annotated[Services, Depends(get_services)],
) -> str:
    """The caller, by API key."""
    if credentials is None:
        raise Unauthorized("Send your API key as 'Authorization: Bearer <key>'.")
    with services.database.reading() as session:
        tenant = keys.tenant_of(session, credentials.credentials, services.settings.secret_key.get_secret_value())
    if tenant is None:
        raise Unauthorized("This API key is not valid.")
    return tenant


def page_of(found: Sequence[Row], limit: int, describe: Callable[[Row], Item]) -> Page[Item]:
    """The first `limit` rows; one row more in `found` says that there are more."""
    return Page(data=[describe(row) for row in found[:limit]], has_more=len(found) > limit)


Tenant = Annotated[str, Depends(get_tenant)]
Here = Annotated[Services, Depends(get_services)]
After = Annotated[str | None, Query(description="The last id of the page before.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Items per page.")]
