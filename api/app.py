"""The HTTP application: `python -m api`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CollectorRegistry

from api import artifacts, datasets, errors, events, health, jobs, keys, metrics, models, secrets, uploads, webhooks
from api.callers import Callers
from api.gate import Gate
from api.limits import BodyLimit
from api.observing import Observing
from jactus_core import __version__
from jobs import keys as api_keys
from jobs import tracing
from jobs.delivering import Sender
from jobs.health import probes_of
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
        tracing.set_up(settings, "jactus-api")
        app.state.services = services = Services.open(settings)
        app.state.callers = Callers(services)
        app.state.probes = probes_of(services)
        registry.register(from_database := metrics.DatabaseCollector(services))
        await run_in_threadpool(_accept_configured_key, services)
        loops = [asyncio.create_task(loop) for loop in (_sweep_forever(services), Sender(services).run())]
        yield
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        registry.unregister(from_database)
        await run_in_threadpool(services.close)
        tracing.shut_down()

    app = FastAPI(
        title="JACTUS",
        summary="Compression as a service for transformers.",
        description=DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
    )
    app.state.metrics = registry = CollectorRegistry()
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(Observing, metrics=metrics.RequestMetrics(registry))
    errors.install(app)
    for part in (jobs, events, artifacts, datasets, models, uploads, secrets, keys, webhooks):
        app.include_router(part.router, responses=errors.responses(429))
    app.include_router(health.router)
    if settings.metrics_enabled:
        app.include_router(metrics.router)
    return app


def _accept_configured_key(services: Services) -> None:
    if key := services.settings.api_key.get_secret_value():
        with services.database.writing() as session:
            secret = services.settings.secret_key.get_secret_value()
            api_keys.create_key(session, key, secret, name="from the settings", id=api_keys.CONFIGURED)


async def _sweep_forever(services: Services) -> None:
    while True:
        try:
            await run_in_threadpool(sweep, services)
        except Exception:  # a dependency is away: the next round tries again
            logger.warning("the sweep failed", exc_info=True)
        await asyncio.sleep(services.settings.sweep_seconds)
