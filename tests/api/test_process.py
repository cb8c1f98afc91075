"""`python -m api` as it runs in production."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx2

from jobs.keys import new_key
from tests.helpers import make_settings, wait_for
from tests.servers import free_ports


def test_it_serves_and_logs_each_request_once_without_its_secrets(
    tmp_path: Path, sqlite_url: str, broker_url: str
) -> None:
    [port], key = free_ports(1), new_key()
    settings = make_settings(tmp_path, database_url=sqlite_url, broker_url=broker_url, port=port, api_key=key)
    log = tmp_path / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen([sys.executable, "-m", "api"], stderr=errors, env=settings.environment())
    try:
        wait_for(lambda: "startup complete" in log.read_text(), 60, "the start of the API")
        headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "mine"}
        answer = httpx2.get(f"http://127.0.0.1:{port}/v1/jobs?after={key}", headers=headers)
        assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    finally:
        process.kill()

    written = log.read_text()
    assert key not in written
    lines = [json.loads(line) for line in written.splitlines()]
    [line] = [line for line in lines if line.get("request_id") == "mine"]
    assert (line["logger"], line["route"], line["status"]) == ("jactus.access", "/v1/jobs", 200)
    assert (line["key_id"], line["tenant"]) == ("key_configured", "default")
    assert not any("GET /v1/jobs" in entry["event"] for entry in lines)
