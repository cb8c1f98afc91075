"""`python -m api`: the HTTP API under uvicorn, in as many processes as WEB_CONCURRENCY says."""

from __future__ import annotations

import gc

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from jobs import logs
from jobs.settings import Settings

STOP_SECONDS = 10
"""Event streams never end by themselves."""


def application() -> FastAPI:
    """What each of uvicorn's processes runs."""
    settings = Settings()
    logs.set_up(settings)
    app = create_app(settings)
    gc.collect()
    gc.freeze()  # what is here now stays, and need not be looked through again and again
    return app


def serve(application: str, settings: Settings) -> None:
    """Run what the factory of this name makes, until the process is asked to end."""
    uvicorn.run(
        application,
        factory=True,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


if __name__ == "__main__":
    settings = Settings()
    logs.set_up(settings)
    serve("api.__main__:application", settings)
