"""Make, list, change and revoke API keys, for admins; and look at one's own."""

from __future__ import annotations

from fastapi import APIRouter

from api.dependencies import Admin, After, Here, KnownCallers, Limit, SignedIn, page_of
from api.errors import responses
from jobs import keys, limits, schemas

router = APIRouter(prefix="/v1/keys", tags=["keys"], responses=responses(401, 403, 422))


@router.post("", status_code=201, responses=responses(413))
def create_key(caller: Admin, services: Here, request: schemas.KeyCreate) -> schemas.NewApiKey:
    """Make a key. This answer is the only one that ever shows it."""
    with services.database.writing() as session:
        made, key = keys.make_key(session, request, services.settings.secret_key.get_secret_value())
        shown = schemas.ApiKey.model_validate(made)
    return schemas.NewApiKey(**shown.model_dump(), key=key)


@router.get("")
def list_keys(caller: Admin, services: Here, after: After = None, limit: Limit = 20) -> schemas.Page[schemas.ApiKey]:
    """The keys of every tenant, newest first."""
    with services.database.reading() as session:
        return page_of(keys.list_keys(session, after, limit), limit, schemas.ApiKey.model_validate)


@router.get("/me")
def own_key(caller: SignedIn, services: Here) -> schemas.OwnApiKey:
    """The key of this very request: its scopes, its limits, and what it takes up now."""
    with services.database.reading() as session:
        shown = schemas.ApiKey.model_validate(keys.find_key(session, caller.key_id))
        shown.limits = limits.in_force(caller.limits, services.settings)
        return schemas.OwnApiKey(**shown.model_dump(), usage=limits.usage(session, caller))


@router.patch("/{key_id}", responses=responses(404, 409, 413))
def update_key(
    caller: Admin, services: Here, callers: KnownCallers, key_id: str, request: schemas.KeyUpdate
) -> schemas.ApiKey:
    """Rename a key or replace its limits. Other processes of the service follow within 5 seconds."""
    own = None if request.limits is None else request.limits.model_dump(exclude_none=True)
    with services.database.writing() as session:
        changed = schemas.ApiKey.model_validate(keys.update_key(session, key_id, request.name, own))
    callers.forget()
    return changed


@router.delete("/{key_id}", responses=responses(404, 409))
def revoke_key(caller: Admin, services: Here, callers: KnownCallers, key_id: str) -> schemas.ApiKey:
    """From now on the key opens nothing; other processes of the service follow within 5 seconds. Revoking it again
    changes nothing."""
    with services.database.writing() as session:
        revoked = schemas.ApiKey.model_validate(keys.revoke_key(session, key_id))
    callers.forget()
    return revoked
