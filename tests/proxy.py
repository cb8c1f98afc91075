"""A way round: a server's second address, which counts who takes it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class Proxy:
    url: str
    connections: int = 0


@contextmanager
def forwarding(target: str) -> Iterator[Proxy]:
    """Forward TCP from a random port to `target`, an http:// URL."""
    host, _, port = target.removeprefix("http://").partition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    far = socket.create_connection((host, int(port)))
                    proxy.connections += 1
                    for source, sink in ((near, far), (far, near)):
                        threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
