"""The application behind a real server, for what a test client hides: connections that break, redirects elsewhere."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from api.app import create_app
from jobs.settings import Settings
from tests.helpers import wait_for


@contextmanager
def serving(settings: Settings, port: int = 0) -> Iterator[tuple[uvicorn.Server, int]]:
    """The server, and its port."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
        )
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_for(lambda: server.started, what="the API")
            yield server, listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
