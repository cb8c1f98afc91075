from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from tests.helpers import make_settings, signed_in


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str, broker_url: str, tiny_bert: Path) -> Settings:
    return make_settings(tmp_path, database_url=sqlite_url, broker_url=broker_url, model_root=tiny_bert.parent)


@pytest.fixture
def either_settings(settings: Settings, database_url: str) -> Settings:
    """On SQLite and on PostgreSQL."""
    return settings.model_copy(update={"database_url": database_url})


@pytest.fixture
def either_client(either_settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(either_settings)) as client:
        yield signed_in(client)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The real application, called with a valid key."""
    with TestClient(create_app(settings)) as client:
        yield signed_in(client)
