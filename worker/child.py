"""Start the pipeline in a process group of its own, listen to it, and leave nothing of it behind."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

from jobs.processes import end_group
from jobs.settings import Settings
from worker.pipeline import Message, Specification

POLL_SECONDS = 0.2
KEPT_OUT = ("JACTUS_", "AWS_")
"""Beginnings of variables that a run has no business to know."""


class Child:
    """A process for one run, without the service's settings and secrets in its environment.

    It gets ready as soon as it is made. Leaving the context ends the whole process group: SIGTERM, a grace, SIGKILL.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.pipeline"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={name: value for name, value in os.environ.items() if not name.startswith(KEPT_OUT)},
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        end_group(self._process, self._grace)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # what a dead child did not read
            self._process.stdin.close()
        self._reader.join()
        self._process.stdout.close()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def run(self, specification: Specification) -> Iterator[Message | None]:
        """Each message as it comes, and None whenever there was none for a moment; ends with the child's output."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead, as its exit code will say
            self._process.stdin.write(specification.model_dump_json() + "\n")
            self._process.stdin.flush()
        while True:
            try:
                line = self._lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                yield None
                continue
            if line is None:
                return
            yield Message.model_validate_json(line)

    def exit_code(self) -> int:
        """Wait for the end; negative for a signal."""
        return self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


class Nursery:
    """Keeps one child ready for the next run, if the settings want that; safe to use from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._ready: Child | None = None

    def prepare(self) -> None:
        """Have a child import what every run needs, which takes seconds."""
        with self._lock:
            if self._ready is None and self._settings.warm_start:
                self._ready = Child(self._settings.cancel_grace_seconds)

    def take(self) -> Child:
        """The child that is ready, or else a new one."""
        with self._lock:
            child, self._ready = self._ready, None
        if child is not None and child.is_alive():
            return child
        return Child(self._settings.cancel_grace_seconds)

    def close(self) -> None:
        """End the child that nobody took."""
        with self._lock:
            child, self._ready = self._ready, None
        if child is not None:
            child.end()
