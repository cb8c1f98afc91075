"""What a run leaves behind as it goes, copied to storage in the background: its log, and each finished stage.

Stages are copied where workers do not share a disk, so that another machine can go on with the job.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from jactus_core.files import WORK_FOLDER
from jobs import leases
from jobs.services import Services
from worker.drain import Draining
from worker.folders import LOG, OUTPUT
from worker.hold import Hold, Stopped

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 5.0
DRAFTS = f"{WORK_FOLDER}/budget-"
"""Folders that are being written; they appear one level up once they are complete."""


class Mirror:
    """A context manager; copies go on inside it, and the log is copied once more at the end."""

    def __init__(self, services: Services, hold: Hold, folder: Path) -> None:
        self._storage = services.storage
        self._hold = hold
        self._folder = folder
        self._stages = services.settings.copies_stages
        self._copied: dict[Path, tuple[int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mirror-{hold.lease.job_id}", daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._try(self._copy_log)

    def _run(self) -> None:
        while not self._over.wait(PAUSE_SECONDS):
            self._try(self._copy_log)
            if self._stages:
                self._try(self._copy_stages)

    def _try(self, copy: Callable[[], None]) -> None:
        """A copy that fails is made again next time; the run itself does not need it."""
        try:
            copy()
        except (Stopped, Draining):
            self._over.set()
        except Exception as error:  # noqa: BLE001 - whatever storage and disk may raise
            logger.warning("a copy to storage failed: %s", type(error).__name__)

    def _copy_log(self) -> None:
        lease = self._hold.lease
        self._copy(self._folder / LOG, leases.log_of(lease.job_id, lease.attempt))

    def _copy_stages(self) -> None:
        """Tensors before the seals that vouch for them; a seal that changed meanwhile waits for the next time."""
        output, prefix = self._folder / OUTPUT, leases.stages_of(self._hold.lease.job_id)
        seals = {file: file.stat().st_mtime_ns for file in (output / WORK_FOLDER).glob("*.json")}
        for file in sorted(output.rglob("*")):
            name = file.relative_to(output).as_posix()
            if file.is_file() and file not in seals and not name.startswith(DRAFTS) and file.suffix != ".part":
                self._copy(file, f"{prefix}/{name}")
        for seal, written_at in seals.items():
            if seal.stat().st_mtime_ns == written_at:
                self._copy(seal, f"{prefix}/{WORK_FOLDER}/{seal.name}")

    def _copy(self, file: Path, key: str) -> None:
        if not file.is_file():
            return
        status = file.stat()
        version = (status.st_size, status.st_mtime_ns)
        if self._copied.get(file) != version:
            self._storage.put_file(key, file, self._hold.check)
            self._copied[file] = version


def restore_stages(services: Services, hold: Hold, folder: Path) -> None:
    """Fetch what an attempt on another machine finished."""
    prefix = leases.stages_of(hold.lease.job_id)
    for key in services.storage.keys_under(prefix):
        target = folder / OUTPUT / key.removeprefix(f"{prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        services.storage.fetch_file(key, target, hold.check)
