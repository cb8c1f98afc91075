"""Numbers for Prometheus: this process's requests, and the jobs of the whole service as the database knows them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.metrics import ServiceMetrics
from jobs.services import Services

logger = logging.getLogger(__name__)
router = APIRouter(include_in_schema=False)

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Everything there is, in Prometheus's text format."""
    registry: CollectorRegistry = request.app.state.metrics
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RequestMetrics:
    """Requests that this process has answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names = ("method", "route")
        self._requests = Counter(
            "jactus_http_requests_total", "Requests answered.", (*names, "status"), registry=registry
        )
        self._seconds = Histogram(
            "jactus_http_request_duration_seconds",
            "Time until a request was answered in full.",
            names,
            registry=registry,
            buckets=BUCKETS,
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class DatabaseCollector(Collector):
    """Asks the database whenever the metrics are read; when it is away, says that alone."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._metrics = ServiceMetrics()

    def collect(self) -> Iterator[Metric]:
        try:
            with self._database.reading() as session:
                found = list(self._metrics.read(session))
        except Exception:  # whatever a driver raises means "away"
            logger.warning("the database could not be asked for metrics", exc_info=True)
            found = []
        yield GaugeMetricFamily("jactus_database_up", "Whether the database answered.", value=float(bool(found)))
        yield from found
