"""Store, list and delete secrets; no answer ever shows one."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from api.dependencies import After, Here, Limit, Reader, Writer, page_of
from api.errors import keep_quiet, responses
from jobs import schemas, secrets

router = APIRouter(
    prefix="/v1/secrets", tags=["secrets"], responses=responses(401, 403, 422), dependencies=[Depends(keep_quiet)]
)


@router.post("", status_code=201, responses=responses(413))
def put_secret(caller: Writer, services: Here, request: schemas.SecretCreate) -> schemas.Secret:
    """Store a secret, or replace the one of this name."""
    value = request.value.get_secret_value()
    with services.database.writing() as session:
        stored = secrets.put(session, services.settings, caller.tenant, request.name, value)
        return schemas.Secret.model_validate(stored)


@router.get("")
def list_secrets(
    caller: Reader, services: Here, after: After = None, limit: Limit = 20
) -> schemas.Page[schemas.Secret]:
    """The names of your secrets, in alphabetical order; pass the last name as `after` for the next part."""
    with services.database.reading() as session:
        found = secrets.list_secrets(session, caller.tenant, after, limit)
        return page_of(found, limit, schemas.Secret.model_validate)


@router.delete("/{name}", status_code=204, responses=responses(404))
def delete_secret(caller: Writer, services: Here, name: str) -> None:
    """Forget a secret. A waiting job that names it will fail."""
    with services.database.writing() as session:
        secrets.remove(session, caller.tenant, name)
