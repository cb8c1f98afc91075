"""Large files: sent in parts that are kept, fetched in ranges that go on where the last attempt stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import httpx2
from anyio import to_thread

from cli.client.connection import ATTEMPTS, Connection, pause
from cli.client.errors import Away, CorruptDownload, Unreachable, UploadInterrupted
from jactus_core.files import sha256_of
from jobs import schemas

AT_ONCE = 4
PARTIAL = 206

Advance = Callable[[int], None]
"""Told of bytes as they are there; of fewer than none when they were wrong."""


async def upload(connection: Connection, file: Path, known: str | None, advance: Advance) -> str:
    """Send all parts but those that have arrived; returns the upload's id."""
    if known is None:
        digest = await to_thread.run_sync(sha256_of, file)
        announced = {"filename": file.name, "bytes": file.stat().st_size, "sha256": digest}
        target = await connection.ask(schemas.Upload, "POST", "/v1/uploads", json=announced)
    else:
        target = await connection.ask(schemas.Upload, "GET", f"/v1/uploads/{known}")
    arrived = {part.number: part.sha256 for part in target.parts}
    with file.open("rb") as handle:
        for number, content in enumerate(iter(lambda: handle.read(target.part_bytes), b""), start=1):
            if arrived.get(number) != hashlib.sha256(content).hexdigest():
                try:
                    await connection.send("PUT", f"/v1/uploads/{target.id}/parts/{number}", content=content)
                except Unreachable as error:
                    raise UploadInterrupted(target.id) from error
            advance(len(content))
    return target.id


async def download(
    connection: Connection, job: str, artifacts: Iterable[schemas.Artifact], folder: Path, advance: Advance
) -> list[Path]:
    """Fetch a few files at a time; the first that fails ends it, and what is there is there for the next call."""
    limiter, failures, found = anyio.CapacityLimiter(AT_ONCE), list[Exception](), dict[str, Path]()

    async def fetch(artifact: schemas.Artifact) -> None:
        async with limiter:
            if not failures:
                try:
                    found[artifact.path] = await _Download(connection, job, artifact, folder, advance).file()
                except Exception as error:  # noqa: BLE001 - raised below, without a group around it
                    failures.append(error)

    wanted = list(artifacts)
    async with anyio.create_task_group() as group:
        for artifact in wanted:
            group.start_soon(fetch, artifact)
    if failures:
        raise failures[0]
    return [found[artifact.path] for artifact in wanted]


class _Download:
    """One file; what has arrived of it lies beside it as `.part` until it is whole and right."""

    def __init__(
        self, connection: Connection, job: str, artifact: schemas.Artifact, folder: Path, advance: Advance
    ) -> None:
        self._connection = connection
        self._path = f"/v1/jobs/{job}/artifacts/{quote(artifact.path)}"
        self._artifact = artifact
        self._advance = advance
        self._target = (folder / artifact.path).resolve()
        if not self._target.is_relative_to(folder.resolve()):
            raise CorruptDownload(f"The service named a path outside the folder: '{artifact.path}'.")
        self._partial = self._target.with_name(self._target.name + ".part")

    async def file(self) -> Path:
        if await self._is_right(self._target):
            self._advance(self._artifact.bytes)
            return self._target
        self._target.parent.mkdir(parents=True, exist_ok=True)
        left_over = self._here()
        if left_over > self._artifact.bytes:
            self._partial.unlink()
        self._advance(self._here())
        right = await self._completed()
        if left_over and not right:  # of another attempt of the job, perhaps
            self._forget()
            right = await self._completed()
        if not right:
            self._forget()
            raise CorruptDownload(f"'{self._artifact.path}' does not have the announced SHA-256; download it again.")
        self._partial.replace(self._target)
        return self._target

    async def _completed(self) -> bool:
        """Fetch what is missing, and say whether it is right.

        A connection that breaks is taken up, as long as bytes come now and then.
        """
        self._partial.touch()
        attempt = 1
        while self._here() < self._artifact.bytes:
            before = self._here()
            try:
                await self._fetch_from(before)
                break
            except (httpx2.TransportError, Away) as error:
                attempt = attempt + 1 if self._here() <= before else 1
                if attempt > ATTEMPTS:
                    message = f"'{self._artifact.path}' did not arrive: {error or type(error).__name__}."
                    raise Unreachable(f"{message} Download again to go on where it stopped.") from error
                await anyio.sleep(pause(attempt))
        return await self._is_right(self._partial)

    async def _fetch_from(self, start: int) -> None:
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with self._connection.stream(self._path, headers) as answer:
            if start and answer.status_code != PARTIAL:
                self._forget()
            with self._partial.open("ab") as out:
                async for chunk in answer.aiter_bytes():
                    await to_thread.run_sync(_write, out, chunk)
                    self._advance(len(chunk))

    def _forget(self) -> None:
        self._advance(-self._here())
        self._partial.unlink()

    def _here(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    async def _is_right(self, file: Path) -> bool:
        if not file.is_file() or file.stat().st_size != self._artifact.bytes:
            return False
        return await to_thread.run_sync(sha256_of, file) == self._artifact.sha256


def _write(out: Any, chunk: bytes) -> None:
    out.write(chunk)
    out.flush()
