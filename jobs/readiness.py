"""Whether a dependency answers, asked with a deadline: one that hangs must not hang who asks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass

from jobs.errors import NotReady

logger = logging.getLogger(__name__)

DEADLINE_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    """What a look at a dependency found; `problem` is fit for everybody's eyes."""

    ok: bool
    seconds: float
    problem: str | None = None


class Probe:
    """Looks at one dependency in a thread of its own, of which there is one at most, however many ask."""

    def __init__(self, name: str, check: Callable[[], None]) -> None:
        self._name, self._check = name, check
        self._lock = threading.Lock()
        self._looking: Future[Finding] | None = None

    def look(self) -> Future[Finding]:
        """A new look, or the one that somebody else waits for already."""
        with self._lock:
            if self._looking is None or self._looking.done():
                self._looking = Future()
                threading.Thread(
                    target=self._run, args=(self._looking,), name=f"probe-{self._name}", daemon=True
                ).start()
            return self._looking

    def _run(self, found: Future[Finding]) -> None:
        started, problem = time.monotonic(), None
        try:
            self._check()
        except NotReady as error:
            problem = error.message
        except Exception as error:  # noqa: BLE001 - whatever a driver raises means "not ready"
            logger.warning("%s is not ready: %s", self._name, error)
            problem = f"The {self._name} does not answer; the log says why."
        found.set_result(Finding(problem is None, round(time.monotonic() - started, 4), problem))


def look_at(probes: Mapping[str, Probe], deadline_seconds: float = DEADLINE_SECONDS) -> dict[str, Finding]:
    """What each probe finds, all at the same time."""
    looks = {name: probe.look() for name, probe in probes.items()}
    wait(looks.values(), deadline_seconds)
    late = f"No answer within {deadline_seconds:g} seconds."
    return {
        name: look.result() if look.done() else Finding(False, deadline_seconds, late) for name, look in looks.items()
    }
