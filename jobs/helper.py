"""One warm helper process that looks at models for the API, and an answer even when it hangs or dies."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jactus_core.errors import UnsupportedModel
from jobs.errors import ServiceError, Told
from jobs.planner import Answer, Request
from jobs.processes import end_group

logger = logging.getLogger(__name__)

START_SECONDS = 120
"""Until torch is imported, on a machine that is busy."""
KEPT_OUT = ("JACTUS_", "HF_TOKEN", "AWS_")
"""Beginnings of variables that the helper has no business to know."""


class PlanningTimeout(ServiceError):
    """The model's configuration keeps the helper busy for too long."""

    code = "planning_timeout"
    status = 422


class PlanningBusy(ServiceError):
    """Others keep the helper busy."""

    code = "planning_busy"
    status = 503


class Helper:
    """Starts with the first question, answers one at a time from any thread, and starts again when it has to."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._closed = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for those who ask now, but not for ever: raises PlanningBusy."""
        if not self._lock.acquire(timeout=self._seconds):
            raise PlanningBusy("Too many models are being looked at; try again in a minute.", "model")
        try:
            yield
        finally:
            self._lock.release()

    def ask(self, request: Request) -> dict[str, Any]:
        """To be called in one's turn; raises PlanningTimeout, UnsupportedModel, or what the helper refuses."""
        line = self._exchange(request) or self._exchange(request)  # it may have died since the last question
        if line is None:
            raise UnsupportedModel(f"Looking at the config.json of '{request.model}' ends the process.", "model")
        answer = Answer.model_validate_json(line)
        if answer.error is not None:
            raise Told(**answer.error)  # type: ignore[arg-type]  # its three fields are those of errors
        assert answer.data is not None
        return answer.data

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End the process; a question that is being answered fails."""
        self._closed = True
        if process := self._process:
            process.kill()
        with self._lock:
            self._stop()

    def _exchange(self, request: Request) -> str | None:
        """The answer, or None when the process is dead."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with _killed_after(process, self._seconds) as expired:
                process.stdin.write(request.model_dump_json() + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
        except OSError:  # it died before it could read
            line = ""
        if line.endswith("\n"):
            return line
        self._stop()
        if expired.is_set():
            raise PlanningTimeout(
                f"Looking at the config.json of '{request.model}' took more than {self._seconds:g} seconds; its sizes "
                "are too large, or JACTUS_PLANNING_SECONDS is too small for this host.",
                "model",
            )
        logger.warning("the helper process died while it looked at %s", request.model)
        return None

    def _start(self) -> subprocess.Popen[str]:
        if self._closed:
            raise PlanningBusy("The service is stopping; try again in a minute.")
        self._folder = tempfile.TemporaryDirectory(prefix="jactus-planner-")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(KEPT_OUT)}
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.planner", self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**environment, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"},
            start_new_session=True,
        )
        self._process = process
        assert process.stdout is not None
        with _killed_after(process, START_SECONDS):
            process.stdout.readline()
        return process

    def _stop(self) -> None:
        if self._process is not None:
            end_group(self._process, 0)
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                with suppress(OSError):  # what a dead process did not read
                    stream.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._process = self._folder = None


@contextmanager
def _killed_after(process: subprocess.Popen[str], seconds: float) -> Iterator[threading.Event]:
    """Kill the process unless the block ends in time; the event says that it did not."""
    expired = threading.Event()

    def kill() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
