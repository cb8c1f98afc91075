"""Alembic's revisions and the tables in the code say the same, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect

import migrations
from jobs.database import make_engine
from jobs.tables import Base
from tests.servers import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jactus.db'}"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.new_database()


def tables(url: str) -> set[str]:
    engine = make_engine(url)
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    return names


def test_the_way_up_down_and_up_again_gives_the_tables_of_the_code(empty_database: str) -> None:
    config = migrations.alembic_config(empty_database)
    expected = {*Base.metadata.tables, "alembic_version"}

    migrations.upgrade(empty_database)
    assert tables(empty_database) == expected
    command.check(config)

    command.downgrade(config, "base")
    assert tables(empty_database) == {"alembic_version"}

    migrations.upgrade(empty_database)
    assert tables(empty_database) == expected
    command.check(config)


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(empty_database: str) -> None:
    migrations.upgrade(empty_database)
    migrations.upgrade(empty_database)
    command.check(migrations.alembic_config(empty_database))
