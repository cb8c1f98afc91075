"""Alembic's revisions and the tables in the code say the same, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, inspect, text

import migrations
from jobs.clock import now
from jobs.database import REVISION, Database, make_engine
from jobs.tables import Base, Dataset, Job
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


def test_several_that_begin_at_once_do_it_once(postgres_server: Postgres) -> None:
    url = postgres_server.new_database()
    environment = {**os.environ, "JACTUS_DATABASE_URL": url, "JACTUS_SECRET_KEY": "s" * 32}
    started = [
        subprocess.Popen([sys.executable, "-m", "migrations"], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    command.check(migrations.alembic_config(url))


def test_newer_tables_are_left_alone(empty_database: str) -> None:
    migrations.upgrade(empty_database)
    engine = make_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    migrations.upgrade(empty_database)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
    engine.dispose()


def test_what_the_first_release_stored_is_still_there(empty_database: str) -> None:
    command.upgrade(migrations.alembic_config(empty_database), "0001")
    engine = make_engine(empty_database)
    moment = now()
    with engine.begin() as connection:
        old = MetaData()
        old.reflect(connection)
        dataset: dict[str, Any] = {
            "id": "dataset_1",
            "tenant": "default",
            "filename": "a.csv",
            "format": "csv",
            "bytes": 9,
            "rows": 4,
        }
        dataset |= {"sha256": "abc", "storage_key": "datasets/dataset_1/data.csv", "created_at": moment}
        dataset |= {"text_column": "sentence", "label_column": "label", "classes": '{"good": 2, "bad": 2}'}
        connection.execute(old.tables["datasets"].insert(), dataset)
        job: dict[str, Any] = {
            "id": "job_1",
            "tenant": "default",
            "status": "queued",
            "task": "text-classification",
            "model": "tiny",
        }
        job |= {"dataset_id": "dataset_1", "config": "{}", "user_metadata": "{}", "progress": 0, "attempt": 0}
        connection.execute(old.tables["jobs"].insert(), job | {"last_event": 0, "created_at": moment})
    engine.dispose()

    migrations.upgrade(empty_database)

    database = Database(empty_database)
    with database.reading() as session:
        found, job_found = session.get_one(Dataset, "dataset_1"), session.get_one(Job, "job_1")
        assert (found.name, found.columns) == ("a.csv", {"text": "sentence", "label": "label"})
        assert (found.task, found.eval_rows, found.deleted_at) == ("text-classification", 0, None)
        assert (job_found.outputs, job_found.device_class, job_found.deleted_at) == (["checkpoint"], "cpu", None)
    database.close()


def test_the_code_knows_the_newest_revision() -> None:
    script = ScriptDirectory.from_config(migrations.alembic_config("sqlite://"))
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert script.get_current_head() == revisions[0] == REVISION
    assert revisions == sorted(revisions, reverse=True)  # by which readiness tells older from newer
