"""`jactus doctor`: what is installed, reachable and writable, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx2
import typer
from pydantic import BaseModel
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cli import profile
from cli.client import ApiError, Client, Unreachable
from cli.commands import EXTRAS, FAILED, Service, missing_of, remote
from cli.output import size, wrong
from jactus_core import __version__

HUB = "https://huggingface.co"
HUB_SECONDS = 5.0
ROOM_BYTES = 5 * 10**9
"""Free disk below which a larger job may stop."""
MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


class Finding(BaseModel):
    """One thing that was looked at; `remedy` is for all but `ok`."""

    name: str
    state: str  # ok, warning or problem
    what: str
    remedy: str | None = None


@remote
def doctor(at: Service) -> None:
    """Look at what is installed, reachable and writable, and say what to do about the rest.

    Of the services, the one that other commands would ask, and the one that the settings here describe.
    """
    found = [finding for look in (_python, _method, _extras, _disk, _settings, _hub) for finding in look()]
    found += _service(at)
    at.tell(found, lambda: _drawn(found))
    if any(finding.state == "problem" for finding in found):
        raise typer.Exit(FAILED)


def _python() -> Iterator[Finding]:
    yield Finding(name="jactus", state="ok", what=f"{__version__}, Python {platform.python_version()}, {sys.prefix}")


def _method() -> Iterator[Finding]:
    """torch is imported only where it is installed, as that takes seconds."""
    if missing_of("method"):
        remedy = "To compress on this machine: pip install 'jactus-core[method]'."
        yield Finding(name="torch", state="warning", what="not installed", remedy=remedy)
        return
    import torch

    yield Finding(name="torch", state="ok", what=f"{torch.__version__}, transformers {version('transformers')}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        what = ", ".join(f"{device.name} ({size(device.total_memory)})" for device in names)
        yield Finding(name="GPU", state="ok", what=what)
        return
    remedy = "Fine for small models; otherwise install a torch that fits the driver: https://pytorch.org/get-started."
    yield Finding(name="GPU", state="warning", what=f"none; {os.cpu_count()} processors", remedy=remedy)


def _extras() -> Iterator[Finding]:
    for extra in ("service", "onnx", "demo"):
        if missing := missing_of(extra):
            remedy = f"If you need it: pip install 'jactus-core[{extra}]'."
            yield Finding(name=extra, state="warning", what=f"{missing[0]} is not installed", remedy=remedy)
        else:
            yield Finding(
                name=extra, state="ok", what=", ".join(f"{name} {_version(name)}".strip() for name in EXTRAS[extra])
            )


def _version(module: str) -> str:
    try:
        return version(module.replace("_", "-"))
    except PackageNotFoundError:
        return ""


def _disk() -> Iterator[Finding]:
    folder = Path(os.environ.get("JACTUS_DATA_DIR", ".jactus")).resolve()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        remedy = "Give yourself the right, or set JACTUS_DATA_DIR to another folder."
        yield Finding(name="data folder", state="problem", what=f"{there} is not writable", remedy=remedy)
        return
    free = shutil.disk_usage(there).free
    scarce = free < ROOM_BYTES
    yield Finding(
        name="data folder",
        state="warning" if scarce else "ok",
        what=f"{folder}, {size(free)} free",
        remedy="Make room, or set JACTUS_DATA_DIR to a larger disk." if scarce else None,
    )


def _settings() -> Iterator[Finding]:
    """The parts of the service that this environment describes, where they are servers."""
    if missing_of("service"):
        return
    from jobs.health import probes_of
    from jobs.readiness import look_at
    from jobs.services import Services
    from jobs.settings import Settings

    settings = Settings()
    if settings.database_url.startswith("sqlite") or not settings.broker_url:
        yield Finding(name="settings", state="ok", what="embedded: `jactus serve` brings everything along")
        return
    services = Services.open(settings)
    try:
        for name, seen in look_at(probes_of(services)).items():
            if seen.ok:
                yield Finding(name=name, state="ok", what="answers")
            else:
                yield Finding(name=name, state="problem", what=seen.problem or "", remedy=REMEDIES[name])
    finally:
        services.close()


REMEDIES = {
    "database": "Check JACTUS_DATABASE_URL, and that PostgreSQL runs and lets this machine in.",
    "migrations": "Bring the tables up to date: python -m migrations.",
    "broker": "Check JACTUS_BROKER_URL, and that Redis or Valkey runs and lets this machine in.",
    "storage": "Check JACTUS_STORAGE_URL and JACTUS_S3_*: the bucket must exist and the key must be allowed to write.",
}


def _hub() -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding(name="hub", state="ok", what="not asked: HF_HUB_OFFLINE is set")
        return
    try:
        httpx2.head(os.environ.get("HF_ENDPOINT", HUB), timeout=HUB_SECONDS)
    except httpx2.HTTPError as error:
        remedy = "Models and datasets of the hub cannot be fetched; use files and folders, or set HTTPS_PROXY."
        what = f"no answer: {error or type(error).__name__}"
        yield Finding(name="hub", state="warning", what=what, remedy=remedy)
    else:
        yield Finding(name="hub", state="ok", what="answers")


def _service(at: Service) -> Iterator[Finding]:
    """The one that other commands would ask."""
    try:
        client = at.client
    except profile.NoService as error:
        yield Finding(name="service", state="warning", what="none is known", remedy=str(error))
        return
    yield from _asked(client)


def _asked(client: Client) -> Iterator[Finding]:
    try:
        own = client.own_key()
    except Unreachable as error:
        remedy = "Does it run, and is the address right? Over there, the log of `python -m api` says more."
        yield Finding(name="service", state="problem", what=str(error), remedy=remedy)
    except ApiError as error:
        yield Finding(
            name="service", state="problem", what=str(error), remedy="Ask for a new key, then `jactus login`."
        )
    else:
        what = f"answers; tenant {own.tenant}, may {', '.join(own.scopes)}"
        yield Finding(name="service", state="ok", what=what)


def _drawn(found: list[Finding]) -> Iterator[RenderableType]:
    drawn = Table.grid(padding=(0, 1))
    for finding in found:
        mark, colour = MARKS[finding.state]
        drawn.add_row(Text(mark, colour), Text(finding.name, "bold"), Text(finding.what))
        if finding.remedy:
            drawn.add_row("", "", Text(f"→ {finding.remedy}", "dim"))
    yield drawn
    if problems := sum(finding.state == "problem" for finding in found):
        yield wrong(f"{problems} {'problem' if problems == 1 else 'problems'}")
