"""Traces, where the settings name a collector; otherwise these functions cost next to nothing.

A trace begins with a request, waits in the job's row as a W3C traceparent, and goes on in the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry import trace
from opentelemetry.trace import NoOpTracer, Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jobs.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER}
EXPORT_SECONDS = 3
"""Retries included; also what a collector that is away may cost at the end of a process."""
W3C = TraceContextTextMapPropagator()

_tracer: trace.Tracer = NoOpTracer()
_provider: TracerProvider | None = None


def set_up(settings: Settings, service: Literal["jactus-api", "jactus-worker"]) -> None:
    """Send this process's spans to the collector of the settings; call it after a fork, not before."""
    global _provider, _tracer
    if not settings.otlp_endpoint:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(f"{settings.otlp_endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
    _provider = TracerProvider(resource=Resource.create({"service.name": service}))
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("jactus")


def shut_down() -> None:
    """Send what is left; from here on nothing is traced."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider, _tracer = None, NoOpTracer()


def current_traceparent() -> str | None:
    """Of the span around the caller, for whoever goes on with its trace."""
    carrier: dict[str, str] = {}
    W3C.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(
    name: str,
    parent: str | None = None,
    kind: Literal["internal", "server", "consumer"] = "internal",
    **attributes: Any,
) -> Iterator[Span]:
    """Time what happens inside, below the traceparent `parent` or else the span around it.

    `attributes` get the prefix `jactus.`.
    """
    context = W3C.extract({"traceparent": parent}) if parent else None
    named = {f"jactus.{key}": value for key, value in attributes.items()}
    with _tracer.start_as_current_span(name, context, KINDS[kind], named) as opened:
        yield opened


@contextmanager
def stages(**attributes: Any) -> Iterator[Callable[[str], None]]:
    """A span for each of several stages: calling what this yields ends one and begins the next."""
    with ExitStack() as current:

        def enter(stage: str) -> None:
            current.close()
            current.enter_context(span(stage, **attributes))

        yield enter
