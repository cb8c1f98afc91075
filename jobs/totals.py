"""Counts that survive every process, because they are part of the transaction of what they count."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.database import insert
from jobs.tables import Total


def add(session: Session, name: str, label: str = "", amount: float = 1) -> None:
    """Add to a total, which begins at 0."""
    row = insert(session, Total).values(name=name, label=label, value=amount)
    grown = {"value": Total.value + row.excluded.value}
    session.execute(row.on_conflict_do_update(index_elements=["name", "label"], set_=grown))


def all_of(session: Session) -> dict[str, dict[str, float]]:
    """Every total, by name and label."""
    found: dict[str, dict[str, float]] = {}
    for total in session.scalars(select(Total)):
        found.setdefault(total.name, {})[total.label] = total.value
    return found
