"""What `python -m worker` writes: one shape, Celery's own lines too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers import make_settings, wait_for


def test_every_line_of_a_worker_is_json(tmp_path: Path, sqlite_url: str, broker_url: str) -> None:
    settings = make_settings(tmp_path, database_url=sqlite_url, broker_url=broker_url, log_format="json")
    log = tmp_path / "log"
    with log.open("wb") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker"],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=settings.environment(),
            start_new_session=True,
        )
    try:
        wait_for(lambda: " ready." in log.read_text(), 60, "the start of the worker")
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
    finally:
        worker.kill()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= line.keys() for line in lines)
    assert any(line["logger"].startswith("celery") for line in lines)
