"""Liveness touches nothing; readiness asks every dependency."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.dependencies import Here

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, bool]


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Readiness}})
def readyz(services: Here, response: Response) -> Readiness:
    """Database, broker and storage answer; 503 and which one does not."""
    parts = {"database": services.database.check, "broker": services.queue.check, "storage": services.storage.check}
    checks = {name: _answers(name, check) for name, check in parts.items()}
    ready = all(checks.values())
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, checks=checks)


def _answers(name: str, check: Callable[[], None]) -> bool:
    try:
        check()
    except Exception as error:  # noqa: BLE001 - whatever a driver raises means "not ready"
        logger.warning("%s is not ready: %s", name, error)
        return False
    return True
