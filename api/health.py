"""Liveness touches nothing; readiness asks every dependency."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs.readiness import look_at

router = APIRouter(tags=["health"])


class Check(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    ok: bool
    seconds: float = Field(description="How long the look took.")
    problem: str | None


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, Check]


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Readiness}})
def readyz(request: Request, response: Response) -> Readiness:
    """Database, broker and storage answer, and the tables are up to date; 503 and what is wrong otherwise."""
    found = look_at(request.app.state.probes)
    ready = all(finding.ok for finding in found.values())
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, checks={name: Check.model_validate(finding) for name, finding in found.items()})
