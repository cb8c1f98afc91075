"""Scratch space on this machine: a folder per attempt, handed on to the next one, removed when nobody needs it."""

from __future__ import annotations

import logging
import shutil
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


def take(root: Path, lease: Lease) -> Path:
    """The folder of this attempt, with what the newest one before it left on this machine.

    A process of an older attempt that still runs loses its folder by the renaming, and can spoil nothing.
    """
    folder = root / f"{lease.job_id}.{lease.attempt}"
    for left in sorted(root.glob(f"{lease.job_id}.*"), key=_attempt, reverse=True):
        if folder.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).unlink(missing_ok=True)
    return folder


def tidy(services: Services) -> None:
    """Remove the folders of jobs that are over or that have gone on elsewhere."""
    root = services.settings.work_dir
    folders = [folder for folder in root.glob("job_*.*") if folder.is_dir()]
    with services.database.reading() as session:
        ids = {_job_id(folder) for folder in folders}
        found = select(Job.id, Job.attempt).where(Job.id.in_(ids), Job.status.in_(LIVE), Job.deleted_at.is_(None))
        newest = dict(session.execute(found).all())
    for folder in folders:
        if _attempt(folder) < newest.get(_job_id(folder), _attempt(folder) + 1):
            logger.info("removing %s, which no job needs any more", folder.name)
            shutil.rmtree(folder, ignore_errors=True)


def _job_id(folder: Path) -> str:
    return folder.name.rpartition(".")[0]


def _attempt(folder: Path) -> int:
    number = folder.name.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0
