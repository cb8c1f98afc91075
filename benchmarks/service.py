"""What the service costs, on a real PostgreSQL and a real Valkey, with every part of it in a process of its own.

    python -m benchmarks.service [--quick] [--parts create growth start overhead]

Creating jobs against a bare handler that inserts the same rows; listing and claiming among 100,000 jobs against 1,000;
the time until an idle worker begins; a whole job against the library's own `compress()`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import text

import migrations
from benchmarks import load
from benchmarks.method_speed import bundled_model
from benchmarks.recording import interleaved, keep, kept, ratio, summarize, versions_of
from cli.client import Client
from cli.docstrings import build_dataset
from jactus_core.config import CompressionConfig, Hyperparameters
from jobs import leases, schemas
from jobs.database import Database
from jobs.keys import new_key
from jobs.settings import Settings
from jobs.states import FINAL, Status
from jobs.tables import Dataset
from tests.servers import Postgres, Server, free_ports, postgres, valkey

COMMAND = "python -m benchmarks.service"
MODEL = "all-MiniLM-L6-v2"
SEED = 0
CLIENTS = 32
FEW, MANY = 1000, 100_000
"""Jobs in the two databases that are compared."""
WAITING_EVERY, RUNNING_EVERY, FAILED_EVERY = 20, 500, 10
PACKAGES = ("fastapi", "uvicorn", "starlette", "pydantic", "sqlalchemy", "psycopg", "celery", "redis")
START_SECONDS = 120.0
LOOK_SECONDS = 0.25
"""As the machine is shared, a look takes from what it looks at."""
SMALL_RUN = Hyperparameters(max_length=64, warmup_epochs=5, calibration_samples=64, epochs=1)
BUDGETS = (0.6,)
ROWS = 500
OVERHEAD_FACTOR, OVERHEAD_SECONDS = 1.03, 2.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    requests: int
    rounds: int
    few: int
    many: int
    looks: int
    starts: int
    runs: int


FULL = Sizes(requests=900, rounds=7, few=FEW, many=MANY, looks=60, starts=12, runs=5)
SMALL = Sizes(requests=300, rounds=3, few=FEW, many=10 * FEW, looks=20, starts=3, runs=1)


class Service:
    """The API as a process, on a database of its own and a folder for storage; workers when they are asked for."""

    def __init__(self, folder: Path, database_url: str, broker_url: str, **values: Any) -> None:
        [port] = free_ports(1)
        self.folder, self.key = folder, new_key()
        secrets = {"secret_key": "the secret of the benchmarks", "api_key": self.key}
        given = {"data_dir": folder, "database_url": database_url, "broker_url": broker_url, "port": port}
        self.settings = Settings(_env_file=None, **{**given, **secrets, "cancel_grace_seconds": 0.5, **values})
        self.database = Database(database_url)
        self._processes = ExitStack()

    def __enter__(self) -> Service:
        migrations.upgrade(self.settings.database_url)
        model = self.settings.model_root / MODEL
        shutil.copytree(bundled_model(), model, ignore=shutil.ignore_patterns("1_Pooling", "*.md", "modules.json"))
        self.start("api", lambda: _get(f"http://{load.HOST}:{self.settings.port}/readyz"))
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()
        self.database.close()

    def start(self, module: str, ready: Callable[[], object]) -> None:
        folder = self.folder / module
        folder.mkdir()
        environment = {**self.settings.environment(), "PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [sys.executable, "-m", module]
        self._processes.enter_context(
            Server(command, folder, ready, Exception, start_seconds=START_SECONDS, env=environment)
        )

    def client(self) -> Client:
        return Client(f"http://{load.HOST}:{self.settings.port}", self.key)

    def message(self, method: str, path: str, body: bytes = b"") -> bytes:
        return load.message(method, path, self.key, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jactus-benchmark-") as folder, postgres() as server, valkey() as broker:
        servers = Servers(Path(folder), server, broker)
        for name in options.parts:
            found, rows = PARTS[name](servers, SMALL if options.quick else FULL)
            if options.quick:
                print(json.dumps({name: found}, indent=2))
                for id, metric, value, bound, holds in rows:
                    print(f"{'ok  ' if holds else 'MISS'}  {id:<28} {value:8.3f}   {metric}, {bound}")
                continue
            parts = {**kept("service", "parts"), name: found}
            keep("service", {"seed": SEED, "packages": versions_of(PACKAGES), "parts": parts})
            for row in rows:
                summarize(*row, COMMAND)


Row = tuple[str, str, float, str, bool]
"""Id, metric, value, bound, and whether it holds."""


@dataclass(frozen=True)
class Servers:
    folder: Path
    postgres: Postgres
    broker_url: str

    def service(self, name: str, **values: Any) -> Service:
        return Service(self.folder / name, self.postgres.new_database(), self.broker_url, **values)


# Creating jobs


def measure_creating(servers: Servers, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    with servers.service("ours") as ours, ours.client() as client, bare_handler(servers) as bare:
        body = job_request(client, servers.folder)
        with ours.database.reading() as session, bare.database.writing() as copy:
            copy.merge(session.get_one(Dataset, body.dataset))
        payload = body.model_dump_json(exclude_defaults=True).encode()
        requests = {
            name: (service, load.message("POST", "/v1/jobs", service.key, payload))
            for name, service in (("ours", ours), ("bare", bare))
        }
        turns: dict[str, list[load.Load]] = {name: [] for name in requests}
        for turn in range(sizes.rounds + 1):
            for name, (service, request) in requests.items():
                forget_jobs(service)
                found = load.send(service.settings.port, request, 201, sizes.requests, CLIENTS)
                if turn:  # the first one warms up
                    turns[name].append(found)
    throughput = {name: [found.throughput for found in turns[name]] for name in turns}
    percentiles = {
        name: {f"p{percent}": [found.percentile(percent) for found in turns[name]] for percent in (50, 99)}
        for name in turns
    }
    value = ratio(throughput, "ours", "bare")
    tail = ratio({name: found["p99"] for name, found in percentiles.items()}, "ours", "bare")
    rows: list[Row] = [
        ("create_throughput", "POST /v1/jobs / bare handler, requests per second", value, ">= 0.6", value >= 0.6),
        ("create_p99", f"99th percentile by the bare handler's, {CLIENTS} clients", tail, "<= 3", tail <= 3),
    ]
    return {"clients": CLIENTS, "requests": sizes.requests, "throughput": throughput, "seconds": percentiles}, rows


@contextmanager
def bare_handler(servers: Servers) -> Iterator[Service]:
    """`benchmarks.bare` in the place of the API."""
    service = servers.service("bare")
    service.folder.mkdir()
    migrations.upgrade(service.settings.database_url)
    try:
        service.start("benchmarks.bare", lambda: _get(f"http://{load.HOST}:{service.settings.port}/openapi.json"))
        yield service
    finally:
        service.__exit__()


def forget_jobs(service: Service) -> None:
    """The database's rows and the broker's messages."""
    with service.database.writing() as session:
        session.execute(text("TRUNCATE jobs CASCADE"))
    with redis.Redis.from_url(service.settings.broker_url) as broker:
        broker.flushall()


# Growing tables


def measure_growth(servers: Servers, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    with ExitStack() as stack:
        services: dict[str, Service] = {}
        waiting: dict[str, list[str]] = {}
        for name, jobs in (("few", sizes.few), ("many", sizes.many)):
            services[name] = service = stack.enter_context(servers.service(name))
            with service.client() as client:
                template = client.create_job(job_request(client, service.folder)).id
            waiting[name] = fill(service.database, template, jobs)
        seconds: dict[str, dict[str, list[float]]] = {}
        looks = {"list": "", "list by status": "?status=succeeded", "list of waiting": "?status=queued"}
        for look, query in looks.items():
            seconds[look] = interleaved(
                {name: looking(service, f"/v1/jobs{query}") for name, service in services.items()}, sizes.looks
            )
        seconds["last in the queue"] = interleaved(
            {name: looking(service, f"/v1/jobs/{waiting[name][-1]}") for name, service in services.items()}, sizes.looks
        )
        seconds["claim"] = interleaved(
            {name: claiming(service.database, waiting[name]) for name, service in services.items()}, sizes.looks // 2
        )
        plans = {name: explain(service.database, waiting[name][-1]) for name, service in services.items()}
    values = {look: ratio(found, "many", "few") for look, found in seconds.items()}
    listing = max(value for look, value in values.items() if look.startswith("list"))
    between = f"{sizes.many:,} jobs / {sizes.few:,}"
    rows: list[Row] = [
        ("list_growth", f"GET /v1/jobs, the slowest filter, {between}", listing, "<= 1.5", listing <= 1.5),
        ("claim_growth", f"claim of a job, {between}", values["claim"], "<= 1.5", values["claim"] <= 1.5),
        (
            "position_growth",
            f"GET of the last waiting job, {between}",
            values["last in the queue"],
            "<= 1.5",
            values["last in the queue"] <= 1.5,
        ),
    ]
    return {"jobs": [sizes.few, sizes.many], "ratios": values, "seconds": seconds, "plans": plans}, rows


def fill(database: Database, template: str, jobs: int) -> list[str]:
    """Copies of a job: most have succeeded, some failed, wait or run; returns who waits, in order."""
    status = f"""CASE WHEN n % {WAITING_EVERY} = 0 THEN 'queued' WHEN n % {RUNNING_EVERY} = 1 THEN 'running'
                 WHEN n % {FAILED_EVERY} = 2 THEN 'failed' ELSE 'succeeded' END"""
    changed = {
        "id": "'job_' || lpad(to_hex(n), 28, '0')",
        "status": status,
        "sent_at": "now()",
        "last_event": "1",
        "lease_token": "to_hex(n)",
        "lease_expires_at": "now() + interval '1 day'",
    }
    with database.writing() as session:
        names = list(
            session.scalars(text("SELECT column_name FROM information_schema.columns WHERE table_name='jobs'"))
        )
        columns = ", ".join(changed.get(name, name) for name in names)
        session.execute(
            text(  # the names are the table's own
                f"INSERT INTO jobs ({', '.join(names)}) SELECT {columns} FROM jobs, generate_series(1, {jobs}) n"  # noqa: S608
            )
        )
        session.execute(text("DELETE FROM events"))
        session.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": template})
        session.execute(text("INSERT INTO events SELECT id, 1, 'status', '{}', created_at FROM jobs"))
    with database.reading() as session:
        session.execute(text("VACUUM ANALYZE"))  # as the server itself does after a while
        return list(session.scalars(text("SELECT id FROM jobs WHERE status = 'queued' ORDER BY id")))


def looking(service: Service, path: str) -> Callable[[], object]:
    request = service.message("GET", path)
    return lambda: load.send(service.settings.port, request, 200, 5, 1)


def claiming(database: Database, waiting: list[str]) -> Callable[[], object]:
    """One job more, under a limit on what the key may run."""
    turn = iter(waiting)

    def claim() -> None:
        with database.writing() as session:
            assert leases.claim(session, next(turn), 30, max_running=MANY)

    return claim


def explain(database: Database, last: str) -> dict[str, list[str]]:
    queries = {
        "list": "SELECT * FROM jobs WHERE tenant = 'default' AND deleted_at IS NULL ORDER BY id DESC LIMIT 21",
        "list by status": "SELECT * FROM jobs WHERE tenant = 'default' AND deleted_at IS NULL AND status = 'failed' "
        "ORDER BY id DESC LIMIT 21",
        "claim": f"UPDATE jobs SET attempt = attempt WHERE id = '{last}' AND status = 'queued' AND deleted_at IS NULL",  # noqa: S608
        "running of a key": "SELECT count(*) FROM jobs WHERE key_id = 'key_configured' "
        "AND status IN ('running', 'cancelling')",
        "position": "SELECT count(*) FROM (SELECT id FROM jobs WHERE status = 'queued' AND device_class = 'cpu' "  # noqa: S608
        f"AND id <= '{last}' LIMIT 1000) ahead",
    }
    with database.reading() as session:
        return {
            name: list(session.scalars(text(f"EXPLAIN (ANALYZE, BUFFERS OFF) {query}")))
            for name, query in queries.items()
        }


# From created to running


def measure_start(servers: Servers, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    with servers.service("start") as service, service.client() as client:
        request = job_request(client, service.folder)
        service.start("worker", lambda: None)
        seconds_to_start(client, request)  # the first job waits for the worker itself
        seconds = [seconds_to_start(client, request) for _ in range(sizes.starts)]
    value = statistics.median(seconds)
    return {"seconds": seconds}, [
        ("start_latency", "seconds from created to running on an idle worker", value, "< 1", value < 1)
    ]


def seconds_to_start(client: Client, request: schemas.JobCreate) -> float:
    """Of a job that is cancelled once it runs."""
    job = until(client, client.create_job(request).id, lambda job: job.started_at is not None)
    client.cancel(job.id)
    until(client, job.id, lambda job: job.status in FINAL)
    assert job.started_at is not None
    return (job.started_at - job.created_at).total_seconds()


# A whole job


def measure_overhead(servers: Servers, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    seconds: dict[str, list[float]] = {"service": [], "library": [], "call": []}
    stages = []
    with servers.service("overhead") as service, service.client() as client:
        request = job_request(client, service.folder, SMALL_RUN, BUDGETS)
        service.start("worker", lambda: None)
        seconds_to_start(client, request)
        for _ in range(sizes.runs):  # the library first: meanwhile the worker is as ready as an idle one
            whole, call = run_library(service.settings.model_root / MODEL, service.folder / "docstrings.jsonl")
            began = time.perf_counter()
            job = until(client, client.create_job(request).id, lambda job: job.status in FINAL)
            took = time.perf_counter() - began
            assert job.status == Status.SUCCEEDED, job.error
            assert job.result is not None
            seconds["service"].append(took)
            seconds["library"].append(whole)
            seconds["call"].append(call)
            stages.append(job.result.seconds)
    beyond = [ours - OVERHEAD_FACTOR * call for ours, call in zip(seconds["service"], seconds["call"], strict=True)]
    value = statistics.median(beyond)
    metric = (
        f"seconds of a job on an idle worker beyond {OVERHEAD_FACTOR} x the call of compress(), imports not counted"
    )
    bound = f"<= {OVERHEAD_SECONDS:g}"
    return {"seconds": seconds, "stages": stages}, [
        ("service_overhead", metric, value, bound, value <= OVERHEAD_SECONDS)
    ]


def run_library(model: Path, data: Path) -> tuple[float, float]:
    """Seconds of a process that compresses, and of the call alone."""
    config = CompressionConfig(budgets=BUDGETS, seed=SEED, **SMALL_RUN.model_dump())
    with tempfile.TemporaryDirectory(prefix="jactus-benchmark-") as folder:
        command = [sys.executable, "-m", "benchmarks.library", str(model), str(data), folder, config.model_dump_json()]
        began = time.perf_counter()
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        return time.perf_counter() - began, float(answer.stdout.splitlines()[-1])


def job_request(
    client: Client, folder: Path, hyperparameters: Hyperparameters | None = None, budgets: tuple[float, ...] = (0.5,)
) -> schemas.JobCreate:
    file = folder / "docstrings.jsonl"
    build_dataset(file)
    rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(random.Random(SEED).sample(rows, ROWS)), encoding="utf-8")
    dataset = client.upload_dataset(file).id
    return schemas.JobCreate(
        model=MODEL,
        dataset=dataset,
        budgets=budgets,
        seed=SEED,
        hyperparameters=hyperparameters or Hyperparameters(),
        metadata={"why": "a benchmark"},
    )


def until(client: Client, id: str, condition: Callable[[schemas.Job], bool]) -> schemas.Job:
    while not condition(job := client.job(id)):
        time.sleep(LOOK_SECONDS)
    return job


def _get(url: str) -> None:
    urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own


PARTS: dict[str, Callable[[Servers, Sizes], tuple[dict[str, Any], list[Row]]]] = {
    "create": measure_creating,
    "growth": measure_growth,
    "start": measure_start,
    "overhead": measure_overhead,
}

if __name__ == "__main__":
    main()
