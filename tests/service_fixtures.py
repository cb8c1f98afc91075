"""The service's fixtures: real servers, migrated databases, settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

import migrations
from jobs import planning
from jobs.database import Database
from jobs.helper import Helper
from jobs.services import Services
from jobs.settings import Settings
from tests.helpers import NOBODY_LISTENS, make_settings
from tests.servers import S3, Postgres, postgres, seaweedfs_s3, valkey


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    """No settings from outside; and one thread per run, as a tiny model gains nothing from more."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("JACTUS_")]:
            patch.delenv(name)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


class BorrowedHelper(Helper):
    """Outlives the application that uses it."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session", autouse=True)
def _one_helper() -> Iterator[None]:
    """Every application of the tests shares one helper process, as starting it takes seconds."""
    helper = BorrowedHelper(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "Helper", lambda seconds, address: helper)
        yield
    Helper.close(helper)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    with valkey() as url:
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    with seaweedfs_s3() as server:
        yield server


@pytest.fixture
def broker_url(valkey_url: str) -> str:
    """A broker with nothing in it."""
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    return valkey_url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("migrated") / "jactus.db"
    migrations.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: Postgres) -> str:
    """Name of a database to copy."""
    url = postgres_server.new_database()
    migrations.upgrade(url)
    return url.rpartition("/")[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database with nothing in it, on either server."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'jactus.db')}"


@pytest.fixture
def postgresql_url(postgres_server: Postgres, migrated_postgres: str) -> str:
    return postgres_server.new_database(template=migrated_postgres)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    """SQLite, a local folder and no broker."""
    return make_settings(tmp_path, database_url=sqlite_url, broker_url=NOBODY_LISTENS)


@pytest.fixture
def services(settings: Settings) -> Iterator[Services]:
    opened = Services.open(settings)
    yield opened
    opened.close()
