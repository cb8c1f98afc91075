"""What every process of the service needs, opened once from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.database import Database
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.storage import Storage


@dataclass(frozen=True)
class Services:
    settings: Settings
    database: Database
    storage: Storage
    queue: Queue

    @classmethod
    def open(cls, settings: Settings) -> Services:
        return cls(settings, Database(settings.database_url), Storage(settings), Queue(settings))

    def close(self) -> None:
        self.database.close()
