"""docs/api.md says what the API does: its snippets run in order, and it leaves out no endpoint and no error code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError

import worker.supervisor  # noqa: F401 - so that every kind of error is known
from api import errors as api_errors
from cli.embedded import EmbeddedService
from jactus_core.errors import JactusError
from tests.helpers import make_settings
from tests.receivers import Receiver, receiver

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
SNIPPET = re.compile(r"^```sh(?: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""After `sh`: `hub` for what needs the internet, or the status that the last answer has."""
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ENDPOINT = re.compile(r"\*\*`(GET|POST|PUT|PATCH|DELETE) (/[^`]*)`\*\*")
CODE = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
NAMED = re.compile(r"""(NotFound|LimitReached)\(\s*"(\w+)\"""")
UNTOLD = {"broker_unavailable", "not_ready"}
"""Codes that no caller meets: a job waits for the broker, and /readyz has sentences of its own."""
ON_HUB = {("POST", "/v1/datasets/hub")}

CURL = """#!/bin/sh
answer='%{{stderr}}%{{http_code}} %{{method}} %{{url_effective}}\\n'
exec {curl} --silent --show-error --write-out "$answer" "$@" 2>>{log}
"""
"""Notes every answer, and is otherwise the real one."""


@dataclass(frozen=True)
class Call:
    """An answer that a snippet got."""

    snippet: int
    status: int
    method: str
    path: str


def endpoints() -> set[tuple[str, str]]:
    """Of the contract, and /metrics, which is not part of it."""
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods} | {("GET", "/metrics")}


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Receiver]:
    with receiver() as running:
        running.before_answer = lambda _: (tmp_path / "delivered").touch()
        yield running


@pytest.fixture
def service(tmp_path: Path, tiny_bert: Path) -> Iterator[EmbeddedService]:
    options: dict[str, Any] = {"upload_part_bytes": 2**16, "allow_private_addresses": True, "sweep_seconds": 0.5}
    settings = make_settings(tmp_path / "service", port=0, model_root=tiny_bert.parent, **options)
    with EmbeddedService(settings) as service:
        yield service


def run(snippets: list[str], folder: Path, environment: dict[str, str]) -> list[Call]:
    """Run the snippets in one shell, whose curl notes every answer; a command that fails ends it."""
    log, tools, work = folder / "calls.log", folder / "bin", folder / "work"
    tools.mkdir()
    work.mkdir()
    (tools / "curl").write_text(CURL.format(curl=shutil.which("curl"), log=log), encoding="utf-8")
    (tools / "curl").chmod(0o755)
    (tools / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (tools / "python3").chmod(0o755)
    program = ["set -euo pipefail"]
    for number, snippet in enumerate(snippets):
        program += [f"echo 'snippet {number}' >> {log}", snippet]
        if "/redeliver" in snippet:  # before its webhook changes
            program += [f"until [ -e {folder / 'delivered'} ]; do sleep 0.1; done"]
    ended = subprocess.run(
        ["/bin/bash", "-c", "\n".join(program)],
        cwd=work,
        env={**os.environ, **environment, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, f"{log.read_text()}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
    return list(answers(log.read_text()))


def answers(log: str) -> Iterator[Call]:
    snippet = 0
    for line in log.splitlines():
        if line.startswith("snippet"):
            snippet = int(line.split()[1])
        else:
            status, method, url = line.split(" ")
            yield Call(snippet, int(status), method, "/" + url.partition("?")[0].split("/", 3)[3])


def matches(path: str, template: str) -> bool:
    pattern = re.escape(template).replace(r"\{path\}", ".+")
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", pattern), path) is not None


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's examples need curl")
def test_every_snippet_runs_in_order_and_every_endpoint_is_called(
    service: EmbeddedService, hook: Receiver, tiny_bert: Path, tmp_path: Path
) -> None:
    snippets = [(kind, snippet) for kind, snippet in SNIPPET.findall(PAGE) if kind != "hub"]
    given = {"URL": service.url, "KEY": service.api_key, "MODEL": tiny_bert.name, "FOLDER": str(tiny_bert)}

    calls = run([snippet for _, snippet in snippets], tmp_path, {**given, "HOOK": hook.url})

    for number, (kind, snippet) in enumerate(snippets):
        statuses = [call.status for call in calls if call.snippet == number]
        if kind:
            assert statuses.pop() == int(kind), snippet
        assert [status for status in statuses if not 200 <= status < 300] == [], snippet
    uncalled = {
        (method, template)
        for method, template in endpoints()
        if not any(call.method == method and matches(call.path, template) for call in calls)
    }
    assert uncalled == ON_HUB

    made = json.loads((tmp_path / "work" / "webhook.json").read_text())
    names: dict[str, Any] = {}
    [verification] = PYTHON.findall(PAGE)
    exec(verification, names)  # noqa: S102 - it is our own page
    _, headers, body = hook.requests[0]
    assert names["message_of"](headers, body, made["secret"])["type"] == "webhook.test"
    with pytest.raises(WebhookVerificationError):
        names["message_of"](headers, body + b" ", made["secret"])


def test_the_page_names_every_endpoint_and_no_other() -> None:
    assert set(ENDPOINT.findall(PAGE)) == endpoints()


def test_the_page_explains_every_error_code_and_no_other() -> None:
    explained = CODE.findall(PAGE.partition("\n## Errors\n")[2])
    assert len(explained) == len(set(explained))
    assert set(explained) == codes() - UNTOLD


def codes() -> set[str]:
    """Those of the kinds of errors, those that name what is missing or full, and those of the framework's refusals."""
    sources = [file for room in ("api", "jobs", "worker") for file in (ROOT / room).glob("*.py")]
    named = {match for file in sources for match in NAMED.findall(file.read_text(encoding="utf-8"))}
    found = {f"{name}_not_found" if kind == "NotFound" else name for kind, name in named}
    return found | {kind.code for kind in kinds(JactusError)} | {*api_errors.CODES.values(), "invalid_request"}


def kinds(kind: type[JactusError]) -> Iterator[type[JactusError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)
