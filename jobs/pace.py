"""How far a running job is as a whole, and when it will be done if it goes on like this."""

from __future__ import annotations

from datetime import datetime, timedelta

LOADING, CALIBRATING, DECOMPOSING, ALLOCATING = 0.05, 0.11, 0.02, 0.03
FINETUNING, EVALUATING, PUBLISHING = 0.65, 0.12, 0.02
"""Shares of the wall time, as small encoders spend it."""
ENOUGH = 0.05
"""Below this fraction a guess would be noise."""


def finished_fraction(stage: str | None, progress: float, budgets: int) -> float:
    """Of the whole run, in [0, 1]; the dense model is evaluated first, then each budget is finetuned and evaluated."""
    evaluation = EVALUATING / (1 + budgets)
    before_budgets = LOADING + CALIBRATING + evaluation + DECOMPOSING + ALLOCATING
    match stage:
        case "loading":
            return LOADING * progress
        case "calibrating":
            return LOADING + CALIBRATING * progress
        case "decomposing":
            return LOADING + CALIBRATING + evaluation + DECOMPOSING * progress
        case "allocating":
            return before_budgets - ALLOCATING * (1 - progress)
        case "finetuning":
            return before_budgets + FINETUNING * progress + evaluation * int(progress * budgets)
        case "evaluating":
            parts = progress * (1 + budgets)
            if parts <= 1:
                return LOADING + CALIBRATING + evaluation * parts
            return before_budgets + evaluation * (parts - 1) + FINETUNING * min(int(parts) / budgets, 1)
        case "publishing":
            return 1 - PUBLISHING * (1 - progress)
        case _:
            return 0.0


def estimated_finish(
    started_at: datetime, moment: datetime, stage: str | None, progress: float, budgets: int
) -> datetime | None:
    """By the pace since `started_at`; None while it is too early to tell."""
    done = finished_fraction(stage, progress, budgets)
    if done < ENOUGH:
        return None
    left: timedelta = (moment - started_at) * ((1 - done) / done)
    return moment + left
