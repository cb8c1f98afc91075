"""Every documented operation under thousands of generated requests: no server error, no answer the contract lacks.

`make fuzz` sends at least 10,000, on both databases, and writes what it found to `benchmarks/results/fuzz.json`;
otherwise at least 2,000 on SQLite. Nothing leaves this machine: the hub is offline and no name resolves.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import Case
from schemathesis.config import SchemathesisConfig
from schemathesis.core.parameters import ParameterLocation
from schemathesis.engine import Status, events, from_schema
from schemathesis.generation.meta import StatefulPhaseData
from schemathesis.hooks import HookContext, unregister
from schemathesis.python.asgi import shutdown_lifespans
from starlette.types import ASGIApp, Receive, Scope, Send

from api.app import create_app
from benchmarks.recording import keep, summarize
from jobs.delivering import Sender
from jobs.services import Services
from jobs.settings import Settings
from tests.api.requests import zipped
from tests.fuzz.things import PART, Things
from tests.helpers import API_KEY, make_settings

FULL = os.environ.get("JACTUS_FUZZ") == "full"
LEAST = 10_000 if FULL else 2_000
EXAMPLES = 110 if FULL else 5
SEED = 20
REAL = 0.8
"""How often a request is about something real."""
LESS = 0.05
"""How often a request comes with a key that may do less, or with a body that is too large."""
LARGEST = 100_000  # bytes
CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})

REFUSED = ["413", "416", "422", "429"]
"""413 and 416 answer what no parameter tells: a body that is too large, and a range of a file."""
CONFIG: dict[str, Any] = {
    "seed": SEED,
    "continue-on-failure": True,
    "request-timeout": 120,
    "suppress-health-check": ["filter_too_much", "too_slow"],
    "headers": {"Authorization": f"Bearer {API_KEY}"},
    "generation": {"max-examples": EXAMPLES, "database": "none", "deterministic": True, "no-shrink": True},
    "checks": {
        # No schema can say that a file, an address or a budget makes sense: 422 answers what is merely well-formed.
        "positive_data_acceptance": {"expected-statuses": ["2xx", "3xx", "401", "403", "404", "409", *REFUSED]},
        "negative_data_rejection": {"expected-statuses": ["400", "401", "403", "404", "405", "409", *REFUSED]},
    },
}
RANGES = ["bytes=0-0", "bytes=0-0,1-1", "bytes=99-", "bytes=x", "lines=1-2"]


class Aim:
    """Leads generated requests to real things, each part of a request only where it was meant to be valid."""

    def __init__(self, things: Things) -> None:
        self._things = things
        self._random = things.random

    def take(self, case: Case[Any], kwargs: dict[str, Any]) -> None:
        """Change a request, and how it is sent, right before that; not one that shall lack a header."""
        if case.meta is not None and case.meta.is_negative_at(ParameterLocation.HEADER):
            return
        if case.path == "/v1/webhooks":
            self._things.make_room_for_webhooks()
        linked = case.meta is not None and isinstance(case.meta.phase.data, StatefulPhaseData)
        if case.path_parameters and not linked and self._may_change(case, ParameterLocation.PATH):
            names = tuple(sorted(case.path_parameters))
            case.path_parameters = self._things.parameters(names, looks=case.method not in CHANGES)
        if self._may_change(case, ParameterLocation.BODY):
            self._fill(case, kwargs)
        if headers := self._headers(case):
            case.headers.update(headers)

    def _may_change(self, case: Case[Any], part: ParameterLocation) -> bool:
        negative = case.meta is not None and case.meta.is_negative_at(part)
        return not negative and self._random.random() < REAL

    def _fill(self, case: Case[Any], kwargs: dict[str, Any]) -> None:
        if case.media_type is not None and self._random.random() < LESS:
            kwargs["data"] = bytes(LARGEST + 1)
        elif case.media_type == "multipart/form-data":
            kwargs["files"] = {"file": self._things.file(case.path)}
        elif case.media_type == "application/octet-stream":
            kwargs["data"] = PART
        elif isinstance(case.body, dict):
            real = {name: make() for name, make in self._things.body_values().items() if name in case.body}
            case.body = case.body | real | ({"revision": None} if "revision" in case.body else {})

    def _headers(self, case: Case[Any]) -> dict[str, str]:
        """Now and then another answer than all of it as JSON."""
        if self._random.random() < REAL:  # a key that comes again is refused before anything else is looked at
            return {"Idempotency-Key": self._random.randbytes(8).hex()} if case.path == "/v1/jobs" else {}
        if case.path.endswith("/events"):  # the stream of a job that is over ends by itself
            case.path_parameters = {"job_id": self._things.parameters(("job_id", "path"), looks=True)["job_id"]}
            case.headers.pop("last-event-id", None)  # from its beginning
            return {"Accept": "text/event-stream"}
        if "/artifacts/" in case.path or "/log" in case.path:
            return {"Range": self._random.choice(RANGES)}
        return {"If-None-Match": "*"} if "/archives/" in case.path else {"Accept": "application/problem+json"}


class OtherKeys:
    """The application, which takes some requests for those of a key that may do less."""

    def __init__(self, app: ASGIApp, things: Things) -> None:
        self._app, self._random = app, things.random
        self._less = [things.key("read"), things.key("read", "write", max_requests_per_minute=1)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = (b"authorization", f"Bearer {API_KEY}".encode())
        if ours in scope.get("headers", []) and self._random.random() < LESS:
            less = (b"authorization", f"Bearer {self._random.choice(self._less)}".encode())
            scope["headers"] = [less if header == ours else header for header in scope["headers"]]
        await self._app(scope, receive, send)


class Report:
    """What came back."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()  # by phase
        self.answers: dict[str, Counter[int]] = {}  # by operation
        self.failures: Counter[str] = Counter()  # by what failed

    def add(self, event: events.EngineEvent) -> None:
        if isinstance(event, events.ScenarioFinished):
            self.cases[event.phase.value] += len(event.recorder.checks)
            for id, interaction in event.recorder.interactions.items():
                if interaction.response is not None:
                    label = event.recorder.cases[id].value.operation.label
                    self.answers.setdefault(label, Counter())[interaction.response.status_code] += 1
            for id, checks in event.recorder.checks.items():
                for check in checks:
                    if check.status != Status.SUCCESS:
                        label = event.recorder.cases[id].value.operation.label
                        info = check.failure_info
                        said = f"{info.failure.message}\n{info.code_sample[:2000]}" if info else check.status.value
                        self.failures[f"{check.name}: {label}: {said}"] += 1
        elif isinstance(event, events.NonFatalError):
            self.failures[f"error: {event.label}: {event.info.format()}"] += 1
        elif isinstance(event, events.FatalError):
            raise event.exception

    def never_reached(self) -> list[str]:
        """Operations that never answered what they are for."""
        return [label for label, found in self.answers.items() if not any(status < 300 for status in found)]

    def as_dict(self) -> dict[str, Any]:
        answers = {label: dict(sorted(found.items())) for label, found in sorted(self.answers.items())}
        failures = dict(self.failures.most_common(20))
        return {"cases": dict(self.cases), "answers": answers, "failures": failures}


def fuzz(settings: Settings, folder: Path, archive: bytes) -> Report:
    services, report = Services.open(settings), Report()
    things = Things(services, folder, archive, SEED)
    aim = Aim(things)

    @schemathesis.hook
    def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
        aim.take(case, kwargs)

    try:
        config = SchemathesisConfig.from_dict(CONFIG)
        app = OtherKeys(create_app(settings), things)
        schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
        for event in from_schema(schema).execute():
            report.add(event)
    finally:
        unregister(before_call)
        shutdown_lifespans()
        services.close()
    return report


async def nowhere(host: str, port: int) -> list[str]:
    raise OSError(f"{host}:{port} is none of the tests' business")


@pytest.mark.timeout(3600 if FULL else 600)
def test_every_answer_is_one_that_the_contract_documents(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    broker_url: str,
    tiny_bert: Path,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("api.app.Sender", lambda services: Sender(services, nowhere))
    reports = {}
    for database in ("sqlite", "postgresql") if FULL else ("sqlite",):
        (folder := tmp_path / database).mkdir()
        url = request.getfixturevalue(f"{database}_url")
        settings = make_settings(
            folder,
            database_url=url,
            broker_url=broker_url,
            model_root=tiny_bert.parent,
            max_queued_jobs=0,
            max_json_bytes=LARGEST,
        )
        reports[database] = fuzz(settings, folder, zipped(tiny_bert))
    cases = {database: report.cases.total() for database, report in reports.items()}
    failures = {database: report.failures.total() for database, report in reports.items()}
    print(f"{cases} cases, {failures} failures")  # noqa: T201 - how much was sent is part of the result
    if FULL:
        found = {database: report.as_dict() for database, report in reports.items()}
        keep("fuzz", {"seed": SEED, **found})
        total = sum(failures.values())
        metric = f"failures in {sum(cases.values())} generated requests"
        summarize("fuzz_failures", metric, total, "= 0", total == 0, "make fuzz")
    for report in reports.values():
        assert report.failures == {}
        assert report.never_reached() == ["POST /v1/datasets/hub"]
    assert sum(cases.values()) >= LEAST
