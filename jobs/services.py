"""What every process of the service needs, opened once from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.database import Database
from jobs.dispatching import Dispatcher
from jobs.planning import Planner
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.storage import Storage


@dataclass(frozen=True)
class Services:
    settings: Settings
    database: Database
    storage: Storage
    queue: Queue
    dispatcher: Dispatcher
    planner: Planner

    @classmethod
    def open(cls, settings: Settings) -> Services:
        database, storage, queue = Database(settings.database_url), Storage(settings), Queue(settings)
        return cls(
            settings, database, storage, queue, Dispatcher(settings, database, queue), Planner(settings, storage)
        )

    def close(self) -> None:
        self.dispatcher.close()
        self.planner.close()
        self.database.close()
