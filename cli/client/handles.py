"""A job in the hand: what the service last said of it, and what can be done with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PrivateAttr

from cli.client.transfers import Advance
from jobs import schemas

if TYPE_CHECKING:
    from cli.client.asynchronous import AsyncClient


class AsyncJob(schemas.Job):
    """As it was when the service was asked; each method asks again and returns what it hears."""

    _client: AsyncClient = PrivateAttr()

    @classmethod
    def of(cls, client: AsyncClient, said: schemas.Job) -> AsyncJob:
        job = cls.model_construct(**dict(said))
        job._client = client
        return job

    async def refresh(self) -> AsyncJob:
        return await self._client.job(self.id)

    async def wait(self, timeout: float | None = None) -> AsyncJob:
        """Until it is final; raises TimeoutError after `timeout` seconds, and the job goes on."""
        return await self._client.wait(self.id, timeout)

    def events(self, after: int = 0) -> AsyncGenerator[schemas.Event]:
        return self._client.events(self.id, after)

    async def download(self, folder: Path, advance: Advance = lambda _: None) -> list[Path]:
        return await self._client.download(self.id, folder, advance)

    async def cancel(self) -> AsyncJob:
        return await self._client.cancel(self.id)

    async def retry(self) -> AsyncJob:
        return await self._client.retry(self.id)

    async def delete(self) -> None:
        await self._client.delete(self.id)
