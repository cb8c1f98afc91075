"""How a running compression tells the world where it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

Stage = Literal["loading", "calibrating", "decomposing", "allocating", "finetuning", "evaluating", "publishing"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Report = Callable[[Stage, float, str], None]
"""Called with the stage, its finished fraction in [0, 1] and a short note for people."""


def silent(stage: Stage, fraction: float, note: str) -> None:
    """The default report: says nothing."""


@dataclass
class StageClock:
    """Adds up wall time per stage, in seconds; a stage may be entered several times."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def running(self, stage: Stage) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - started, 3)
