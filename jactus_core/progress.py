"""How a running compression tells the world where it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

Stage = Literal["loading", "calibrating", "decomposing", "allocating", "finetuning", "evaluating", "publishing"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Report = Callable[[Stage, float, str], None]
"""Called with the stage, its finished fraction in [0, 1] and a short note for people."""


def silent(stage: Stage, fraction: float, note: str) -> None:
    """The default report: says nothing."""


def part(report: Report, stage: Stage, index: int, parts: int, note: str) -> Callable[[float], None]:
    """Progress of one of several equal parts of a stage, from 0 to 1."""
    return lambda done: report(stage, (index + done) / parts, note)


@dataclass
class StageClock:
    """Adds up wall time per stage, in seconds; a stage may be entered several times."""

    seconds: dict[str, float] = field(default_factory=dict)
    _stage: str | None = None
    _since: float = 0.0

    def enter(self, stage: str | None) -> None:
        """Leave the stage before, and enter `stage` unless it is None."""
        moment = time.monotonic()
        if self._stage is not None:
            self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + moment - self._since, 3)
        self._stage, self._since = stage, moment
