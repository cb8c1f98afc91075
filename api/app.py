"""The HTTP application: `uvicorn --factory api.app:create_app`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from api import artifacts, datasets, errors, events, health, jobs
from api.limits import BodyLimit
from jactus_core import __version__
from jobs import keys as api_keys
from jobs.services import Services
from jobs.settings import Settings
from jobs.sweep import sweep

logger = logging.getLogger(__name__)

DESCRIPTION = """Send a pretrained transformer, a labelled dataset and a parameter budget; get back a smaller model that
is already tuned for the task.

1. `POST /v1/datasets` uploads the data.
2. `POST /v1/jobs` starts a compression.
3. `GET /v1/jobs/{id}/events` shows it working.
4. `GET /v1/jobs/{id}/artifacts` lists the checkpoints.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or Settings()
    if not settings.secret_key.get_secret_value():
        raise RuntimeError("JACTUS_SECRET_KEY is not set; it protects the stored API keys. Use 32 random characters.")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = services = Services.open(settings)
        await run_in_threadpool(_accept_configured_key, services)
        sweeping = asyncio.create_task(_sweep_forever(services))
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        services.close()

    app = FastAPI(
        title="JACTUS",
        summary="Compression as a service for transformers.",
        description=DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimit, max_file_bytes=settings.max_upload_bytes)
    errors.install(app)
    for part in (jobs, events, artifacts, datasets, health):
        app.include_router(part.router)
    return app


def _accept_configured_key(services: Services) -> None:
    if key := services.settings.api_key.get_secret_value():
        with services.database.writing() as session:
            api_keys.accept_key(session, key, services.settings.secret_key.get_secret_value())


async def _sweep_forever(services: Services) -> None:
    while True:
        try:
            await run_in_threadpool(sweep, services.settings, services.database, services.queue)
        except Exception:  # a dependency is away: the next round tries again
            logger.warning("the sweep failed", exc_info=True)
        await asyncio.sleep(services.settings.sweep_seconds)
