"""Scratch space on this machine: a folder per attempt, handed on to the next one, removed when nobody needs it."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from jobs.leases import Lease
from jobs.services import Services
from jobs.states import LIVE
from jobs.tables import Job

logger = logging.getLogger(__name__)

OUTPUT = "output"
MODELS = "models"
LOG = "run.log"
GOING = "going."
"""A folder is renamed before it is removed, so that no attempt takes half of it."""


def take(root: Path, lease: Lease) -> Path:
    """The folder of this attempt, with what the newest one before it left on this machine.

    A process of an older attempt that still runs loses its folder by the renaming, and can spoil nothing.
    """
    folder = root / f"{lease.job_id}.{lease.attempt}"
    for left in sorted(root.glob(f"{lease.job_id}.*"), key=_attempt, reverse=True):
        if folder.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                left.rename(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).unlink(missing_ok=True)
    return folder


def tidy(services: Services) -> None:
    """Remove the folders of jobs that are over; those of a job that has gone on elsewhere wait for its end."""
    root = services.settings.work_dir
    folders = [folder for folder in root.glob("*.*") if folder.is_dir()]
    if not folders:
        return
    with services.database.reading() as session:
        ids = {_job_id(folder) for folder in folders}
        live = set(session.scalars(select(Job.id).where(Job.id.in_(ids), Job.status.in_(LIVE))))
    for folder in folders:
        if _job_id(folder) not in live:
            logger.info("removing %s, which no job needs any more", folder.name)
            with suppress(FileNotFoundError):
                shutil.rmtree(folder.rename(root / f"{GOING}{folder.name}"), ignore_errors=True)


def keep_tidy(services: Services) -> None:
    """Never returns; a job may end on another machine while this one has nothing to do."""
    while True:
        try:
            tidy(services)
        except Exception:  # the database is away: the next look comes
            logger.warning("scratch space could not be looked through", exc_info=True)
        time.sleep(services.settings.sweep_seconds)


def _job_id(folder: Path) -> str:
    return folder.name.rpartition(".")[0]


def _attempt(folder: Path) -> int:
    number = folder.name.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0
