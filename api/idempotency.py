"""`Idempotency-Key`: a request that is sent twice is carried out once, and answered alike."""

from __future__ import annotations

from types import TracebackType
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.orm import Session

from jobs import idempotency
from jobs.idempotency import Answer, Reservation
from jobs.keys import Caller
from jobs.services import Services

Key = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A name of your choice for this request: sent again within 24 hours, it gets the first answer.",
    ),
]


class Once:
    """One request; without a key it is like any other."""

    def __init__(self, services: Services, caller: Caller, path: str, key: str | None) -> None:
        self._services = services
        self._caller = caller
        self._path = path
        self._key = key
        self._held: Reservation | None = None

    def __enter__(self) -> Once:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """What failed was not carried out, and may be sent again."""
        if kind is not None and self._held is not None:
            with self._services.database.writing() as session:
                idempotency.give_up(session, self._held)

    def begin(self, request: BaseModel) -> Response | None:
        """The first answer, if there is one; else the request is now the one that is carried out."""
        if self._key is None:
            return None
        fingerprint = idempotency.fingerprint(self._path, request.model_dump_json())
        with self._services.database.writing() as session:
            found = idempotency.reserve(session, self._caller.tenant, self._key, fingerprint)
        if isinstance(found, Reservation):
            self._held = found
            return None
        headers = {"Idempotent-Replayed": "true", "Location": f"{self._path}/{found.body['id']}"}
        return JSONResponse(found.body, found.status, headers)

    def keep(self, session: Session, answer: BaseModel, status: int = 201) -> None:
        """Remember the answer in the transaction of what it tells of."""
        if self._held is not None:
            idempotency.keep(session, self._held, Answer(status, answer.model_dump(mode="json")))


async def get_once(request: Request, idempotency_key: Key = None) -> Once:
    return Once(request.app.state.services, request.state.caller, request.url.path, idempotency_key)


Idempotent = Annotated[Once, Depends(get_once)]
