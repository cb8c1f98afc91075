"""One warm helper process that looks at models for the API, here or elsewhere, and an answer even when it dies."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Protocol

from jactus_core.errors import UnsupportedModel
from jobs.errors import ServiceError, Told
from jobs.planner import Answer, Request
from jobs.processes import end_group

logger = logging.getLogger(__name__)

START_SECONDS = 120
"""Until torch is imported, on a machine that is busy."""
CONNECT_SECONDS = 10
HELLO = b"\n"
"""What begins a connection, so that one made only to see whether somebody listens starts no process."""
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


class Line(Protocol):
    """A helper at the other end; whoever reads a line that was cut gets an end of file."""

    pid: int | None
    reader: IO[str]
    writer: IO[str]

    def cut(self) -> None: ...

    def close(self) -> None: ...


class OwnProcess:
    """A child of this process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="jactus-planner-")
        self._process = spawn(self._folder.name, subprocess.PIPE, subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid: int | None = self._process.pid
        self.writer: IO[str] = self._process.stdin
        self.reader: IO[str] = self._process.stdout

    def cut(self) -> None:
        self._process.kill()

    def close(self) -> None:
        end_group(self._process, 0)
        for stream in (self.writer, self.reader):
            with suppress(OSError):  # what a dead process did not read
                stream.close()
        self._folder.cleanup()


class Connection:
    """A helper that `python -m jobs.planners` keeps, perhaps on another machine; it ends with the connection."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.pid: int | None = None
        self._socket = socket.create_connection((host, int(port)), CONNECT_SECONDS)
        self._socket.settimeout(None)
        self._socket.sendall(HELLO)
        self.writer: IO[str] = self._socket.makefile("w", encoding="utf-8")
        self.reader: IO[str] = self._socket.makefile("r", encoding="utf-8")

    def cut(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        for stream in (self.writer, self.reader, self._socket):
            with suppress(OSError):  # what nobody read any more
                stream.close()


def spawn(folder: str, stdin: Any, stdout: Any) -> subprocess.Popen[str]:
    """A helper process that knows none of our secrets, in a group of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(KEPT_OUT)}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.planner", folder],
        stdin=stdin,
        stdout=stdout,
        text=True,
        encoding="utf-8",
        env={**environment, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"},
        start_new_session=True,
    )


class Helper:
    """Starts with the first question, answers one at a time from any thread, and starts again when it has to.

    With an `address`, such as planner:9000, it runs there.
    """

    def __init__(self, seconds: float, address: str = "") -> None:
        self._seconds = seconds
        self._address = address
        self._lock = threading.Lock()
        self._line: Line | None = None
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
        """Of a child of this process."""
        return self._line.pid if self._line else None

    def close(self) -> None:
        """End the process; a question that is being answered fails."""
        self._closed = True
        if line := self._line:
            line.cut()
        with self._lock:
            self._stop()

    def _exchange(self, request: Request) -> str | None:
        """The answer, or None when the process is dead."""
        line = self._line or self._start()
        try:
            with _cut_after(line, self._seconds) as expired:
                line.writer.write(request.model_dump_json() + "\n")
                line.writer.flush()
                answer = line.reader.readline()
        except OSError:  # it died before it could read
            answer = ""
        if answer.endswith("\n"):
            return answer
        self._stop()
        if expired.is_set():
            raise PlanningTimeout(
                f"Looking at the config.json of '{request.model}' took more than {self._seconds:g} seconds; its sizes "
                "are too large, or JACTUS_PLANNING_SECONDS is too small for this host.",
                "model",
            )
        logger.warning("the helper process died while it looked at %s", request.model)
        return None

    def _start(self) -> Line:
        """Once it is ready; raises PlanningBusy where nobody answers."""
        if self._closed:
            raise PlanningBusy("The service is stopping; try again in a minute.")
        try:
            line: Line = Connection(self._address) if self._address else OwnProcess()
            self._line = line
            with _cut_after(line, START_SECONDS):
                ready = line.reader.readline()
        except OSError as error:
            logger.warning("the planner at %s does not answer: %s", self._address, error)
            ready = ""
        if not ready and self._address:
            self._stop()
            raise PlanningBusy("The planner does not answer; try again in a minute.")
        return line

    def _stop(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line = None


@contextmanager
def _cut_after(line: Line, seconds: float) -> Iterator[threading.Event]:
    """Cut the line unless the block ends in time; the event says that it did not."""
    expired = threading.Event()

    def cut() -> None:
        expired.set()
        line.cut()

    timer = threading.Timer(seconds, cut)
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
