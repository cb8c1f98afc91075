"""One trace from the request to the last stage of the run, at a real collector."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from api.app import create_app
from jobs import tracing
from jobs.database import Database
from jobs.settings import Settings
from tests.api.requests import upload_reviews
from tests.helpers import NOBODY_LISTENS, QUICK, get_job, make_settings, signed_in, wait_for
from tests.servers import free_ports

CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLERS_SPAN = "b7ad6b7169203331"


@dataclass(frozen=True)
class Seen:
    """A span as the collector got it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, str | int]


@dataclass
class Collector:
    """Takes OTLP over HTTP."""

    url: str = ""
    spans: list[Seen] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            [service] = [pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}
                    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                    self.spans.append(Seen(service, span.name, *ids, values))

    def named(self, name: str) -> Seen:
        [found] = [span for span in self.spans if span.name == name]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        tracing.shut_down()
        server.shutdown()


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str, broker_url: str, tiny_bert: Path, collector: Collector) -> Settings:
    given = {"database_url": sqlite_url, "broker_url": broker_url, "model_root": tiny_bert.parent}
    return make_settings(tmp_path, otlp_endpoint=collector.url, **given)


@contextmanager
def worker(settings: Settings) -> Iterator[None]:
    """A real one, told to end when its job is done: it sends its last spans then."""
    process = subprocess.Popen([sys.executable, "-m", "worker"], env=settings.environment(), start_new_session=True)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()


def create_job(client: TestClient, **headers: str) -> str:
    body = {"model": "tiny-bert", "dataset": upload_reviews(client), "budgets": [0.5]}
    quick = {"hyperparameters": QUICK.model_dump(exclude_unset=True)}
    answer = client.post("/v1/jobs", json=body | quick, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_the_worker_goes_on_with_the_trace_of_the_request(settings: Settings, collector: Collector) -> None:
    database = Database(settings.database_url)
    with worker(settings), TestClient(create_app(settings)) as client:
        job = create_job(signed_in(client), traceparent=f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01")
        wait_for(lambda: get_job(database, job).finished_at, 120, "the end of the job")
    finished = get_job(database, job)
    database.close()
    assert finished.error is None

    request, attempt = collector.named("POST /v1/jobs"), collector.named("attempt")
    assert (request.service, request.trace, request.parent) == ("jactus-api", CALLERS_TRACE, CALLERS_SPAN)
    assert request.attributes["http.route"] == "/v1/jobs"
    assert request.attributes["http.response.status_code"] == 201
    assert finished.trace == f"00-{CALLERS_TRACE}-{request.id}-01"
    assert (attempt.service, attempt.trace, attempt.parent) == ("jactus-worker", CALLERS_TRACE, request.id)
    expected = {"jactus.job_id": job, "jactus.attempt": 1, "jactus.outcome": "succeeded"}
    assert attempt.attributes == expected

    stages = [span for span in collector.spans if span.parent == attempt.id]
    assert {"loading", "calibrating", "finetuning", "evaluating", "publishing"} <= {span.name for span in stages}
    assert {(span.service, span.trace, span.attributes["jactus.job_id"]) for span in stages} == {
        ("jactus-worker", CALLERS_TRACE, job)
    }


def test_a_request_without_a_trace_begins_one(settings: Settings, collector: Collector) -> None:
    with TestClient(create_app(settings)) as client:
        signed_in(client).get("/v1/jobs/job_1", headers={"traceparent": "no such thing"})
        client.get("/healthz")
    spans = [collector.named("GET /v1/jobs/{job_id}"), collector.named("GET /healthz")]
    assert [span.parent for span in spans] == ["", ""]
    assert len({span.trace for span in spans}) == 2


def test_a_collector_that_is_away_disturbs_nobody(settings: Settings) -> None:
    [port] = free_ports(1)
    away = settings.model_copy(update={"otlp_endpoint": f"http://127.0.0.1:{port}"})
    with TestClient(create_app(away)) as client:
        assert client.get("/healthz").status_code == 200


def test_without_a_collector_nothing_of_the_exporter_is_imported(tmp_path: Path) -> None:
    program = """
import sys
from fastapi.testclient import TestClient
import migrations, worker.supervisor
from api.app import create_app
from jobs.settings import Settings
settings = Settings()
migrations.upgrade(settings.database_url)
with TestClient(create_app(settings)) as client:
    assert client.get("/healthz").status_code == 200
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
"""
    settings = make_settings(tmp_path, broker_url=NOBODY_LISTENS)
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, env=settings.environment(), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
