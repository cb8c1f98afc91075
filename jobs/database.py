"""One database, two doors: `reading()` and `writing()`. The same code on PostgreSQL and on SQLite."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, Select, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from jobs.errors import NotReady

Row = TypeVar("Row")

SQLITE_BUSY_SECONDS = 30
CONNECTIONS = 15
"""Per process; more would only wait for each other."""
TRUSTED_SECONDS = 5.0
"""Idle time after which a connection is asked whether it still works."""
REVISION = "0002"
"""The newest of the migrations that this code was written for; a test compares."""


class Database:
    """Short transactions in sessions; SQLite runs in WAL mode and takes its write lock up front."""

    def __init__(self, url: str) -> None:
        self._engine = make_engine(url)
        self._reader = self._engine
        if self._engine.dialect.name == "postgresql":  # each statement sees its own snapshot anyway
            self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with Session(self._reader) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Commits at the end, rolls back on an exception."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def check(self) -> None:
        """Raise when the database does not answer."""
        with self.reading() as session:
            session.execute(text("SELECT 1"))

    def check_revision(self) -> None:
        """Raise when the tables are older than the code; newer ones serve older code too."""
        with self.reading() as session:
            known = inspect(session.connection()).has_table("alembic_version")
            found = session.scalar(text("SELECT version_num FROM alembic_version")) if known else None
        if found is None or found < REVISION:
            state = "has no tables" if found is None else f"is at revision {found}, this code needs {REVISION}"
            raise NotReady(f"The database {state}; run 'python -m migrations'.")

    def close(self) -> None:
        self._engine.dispose()


def newest_first(session: Session, query: Select[Row], id: Any, after: str | None, limit: int) -> list[Row]:
    """The rows past the id `after`; `limit` + 1 of them, so that the caller sees whether there are more."""
    if after is not None:
        query = query.where(id < after)
    return list(session.scalars(query.order_by(id.desc()).limit(limit + 1)))


def insert(session: Session, table: type[Any]) -> Any:
    """An INSERT that knows ON CONFLICT, which both databases spell the same."""
    name = session.get_bind().dialect.name
    return (postgresql.insert if name == "postgresql" else sqlite.insert)(table)


def make_engine(url: str) -> Engine:
    """`postgresql://` means psycopg 3."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(parsed, pool_size=CONNECTIONS, max_overflow=0)
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", _refuse_dead)
        return engine
    engine = create_engine(parsed, connect_args={"timeout": SQLITE_BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _note_use(_: Any, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _refuse_dead(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
    """Another one is taken instead. A server that ended has said so on the socket, which costs nothing to see."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise DisconnectionError("The server has closed the connection.")
    if time.monotonic() - record.info.get("used_at", float("inf")) > TRUSTED_SECONDS:
        try:
            connection.execute("")
            connection.rollback()
        except psycopg.Error as error:
            raise DisconnectionError(str(error)) from error


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
