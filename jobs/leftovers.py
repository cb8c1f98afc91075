"""Files that nobody needs any more, or that nobody may come to need: noted first, deleted by the sweep.

Whoever is about to put files into storage notes their prefix with a due date, and strikes the note out in the
transaction that makes them part of the service. Whoever lets go of files notes their prefix in the transaction that
does. So a process may die at any moment and no file is left behind.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.database import Database, insert
from jobs.storage import Storage
from jobs.tables import Leftover

UNCLAIMED_HOURS = 24
CLEARED_AT_ONCE = 100


def expect(session: Session, prefix: str) -> None:
    """Note files that are about to be written; `claim` them, or they go."""
    _note(session, prefix, timedelta(hours=UNCLAIMED_HOURS))


def leave(session: Session, prefix: str) -> None:
    """Let the files under `prefix` go."""
    _note(session, prefix, timedelta())


def claim(session: Session, prefix: str) -> None:
    """The files under `prefix` stay."""
    session.execute(delete(Leftover).where(Leftover.prefix == prefix))


def clear(database: Database, storage: Storage) -> None:
    """Delete what is due; a note goes after its files."""
    with database.reading() as session:
        due = select(Leftover.prefix).where(Leftover.due_at <= now()).order_by(Leftover.due_at).limit(CLEARED_AT_ONCE)
        prefixes = list(session.scalars(due))
    for prefix in prefixes:
        storage.delete_under(prefix)
        with database.writing() as session:
            claim(session, prefix)


def _note(session: Session, prefix: str, delay: timedelta) -> None:
    row = insert(session, Leftover).values(prefix=prefix, due_at=now() + delay)
    session.execute(row.on_conflict_do_update(index_elements=["prefix"], set_={"due_at": row.excluded.due_at}))
