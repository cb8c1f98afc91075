"""Start the pipeline in a process group of its own, listen to it, and leave nothing of it behind."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from jobs.processes import end_group
from worker.pipeline import Message, Specification

POLL_SECONDS = 0.2
KEPT_OUT = ("JACTUS_", "AWS_")
"""Beginnings of variables that a run has no business to know."""


class Child:
    """One run, without the service's settings and secrets in its environment.

    Leaving the context ends the whole process group: SIGTERM, a grace, SIGKILL.
    """

    def __init__(self, specification: Specification, log: Path, grace_seconds: float) -> None:
        self._grace = grace_seconds
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.pipeline"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env={name: value for name, value in os.environ.items() if not name.startswith(KEPT_OUT)},
                start_new_session=True,
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        self._process.stdin.write(specification.model_dump_json() + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        end_group(self._process, self._grace)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._reader.join()
        self._process.stdout.close()

    def messages(self) -> Iterator[Message | None]:
        """Each message as it comes, and None whenever there was none for a moment; ends with the child's output."""
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
