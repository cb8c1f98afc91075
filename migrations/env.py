"""Alembic's environment; the URL comes from `migrations.alembic_config`."""

from typing import Literal

from alembic import context
from sqlalchemy import text

from jobs.database import REVISION, make_engine
from jobs.tables import Base, UtcDateTime

LOCK = 0x6A6163747573
"""Any number that nobody else locks in this database."""


def render_item(kind: str, item: object, _: object) -> str | Literal[False]:
    """Keep revisions free of the application's own types."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


engine = make_engine(context.config.attributes["database_url"])
with engine.connect() as connection:
    if engine.dialect.name == "sqlite":  # its tables are altered by making them anew, which must not look like deleting
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("PRAGMA foreign_keys=OFF")
    context.configure(
        connection=connection, target_metadata=Base.metadata, render_as_batch=True, render_item=render_item
    )
    with context.begin_transaction():
        if engine.dialect.name == "postgresql":  # several may begin at once; the others then find nothing to do
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        found = context.get_context().get_current_revision()
        if found is None or found <= REVISION:  # newer tables serve this code too, which may start beside them
            context.run_migrations()
engine.dispose()
