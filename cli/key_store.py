"""API keys in the database of the settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

import migrations
from cli.commands import Mistake
from cli.embedded import with_secrets
from cli.profile import SECRETS
from jobs import keys, schemas
from jobs.database import Database
from jobs.settings import Settings

PAGE = 100


def make(request: schemas.KeyCreate) -> schemas.NewApiKey:
    settings = _settings()
    with _writing(settings) as session:
        made, key = keys.make_key(session, request, settings.secret_key.get_secret_value())
        return schemas.NewApiKey(**schemas.ApiKey.model_validate(made).model_dump(), key=key)


def every() -> list[schemas.ApiKey]:
    """Newest first."""
    found: list[schemas.ApiKey] = []
    with _writing(_settings()) as session:
        while page := keys.list_keys(session, found[-1].id if found else None, PAGE)[:PAGE]:
            found += [schemas.ApiKey.model_validate(key) for key in page]
    return found


def revoke(id: str) -> None:
    """Raises NotFound."""
    with _writing(_settings()) as session:
        keys.revoke_key(session, id)


def _settings() -> Settings:
    """With the secret of the service, which a database elsewhere does not bring along."""
    settings = Settings()
    own_database = settings.database_url.startswith("sqlite")
    if own_database:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if settings.secret_key.get_secret_value():
        return settings
    if not own_database and not (settings.data_dir / SECRETS).exists():
        raise Mistake("Set JACTUS_SECRET_KEY to that of the service; keys are hashed under it.")
    return with_secrets(settings)


@contextmanager
def _writing(settings: Settings) -> Iterator[Session]:
    migrations.upgrade(settings.database_url)
    database = Database(settings.database_url)
    try:
        with database.writing() as session:
            yield session
    finally:
        database.close()
