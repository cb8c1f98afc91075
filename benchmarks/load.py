"""Many clients at once, as cheap as can be: what is measured shares the machine with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Load:
    """What the clients saw."""

    seconds: float
    latencies: list[float]

    @property
    def throughput(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: int) -> float:
        return sorted(self.latencies)[min(len(self.latencies) * percent // 100, len(self.latencies) - 1)]


def send(port: int, request: bytes, status: int, requests: int, clients: int) -> Load:
    """The same request so many times, by clients that each keep one connection and send the next one when the last is
    answered; raises RuntimeError at another status."""
    latencies: list[float] = []
    began = time.perf_counter()
    asyncio.run(_all(port, request, status, iter(range(requests)), clients, latencies))
    return Load(time.perf_counter() - began, latencies)


def message(method: str, path: str, key: str = "", body: bytes = b"") -> bytes:
    head = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}"]
    head += ["Content-Type: application/json"] if body else []
    head += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*head, "", ""]).encode() + body


async def _all(port: int, request: bytes, status: int, turns: Iterator[int], clients: int, into: list[float]) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(_client(port, request, status, turns, into))


async def _client(port: int, request: bytes, status: int, turns: Iterator[int], into: list[float]) -> None:
    reader, writer = await asyncio.open_connection(HOST, port)
    for _ in turns:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        into.append(time.perf_counter() - began)
        if int(head.split(b" ", 2)[1]) != status:
            raise RuntimeError(f"{head.splitlines()[0].decode()}: {body.decode()}")
    writer.close()
    await writer.wait_closed()
