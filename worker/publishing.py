"""The end of a run: every file to storage, with a manifest of their hashes last."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from jactus_core.files import WORK_FOLDER
from jobs import leases
from jobs.errors import StorageUnavailable
from jobs.services import Services
from jobs.tables import Artifact
from worker.hold import Hold

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0

Tell = Callable[[float, str], None]
"""Called with the finished fraction and a note."""


def publish(services: Services, hold: Hold, output: Path, without: Iterable[str], tell: Tell) -> list[Artifact]:
    """Upload what lies in `output` except the folders `without`; raises StorageUnavailable in the end."""
    hidden = {WORK_FOLDER, *without}
    relative = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    names = sorted(path.as_posix() for path in relative if path.parts[0] not in hidden and path.name != MANIFEST)
    files = []
    for number, name in enumerate(names):
        tell(number / len(names), name)
        files.append(_upload(services, hold, output, name))
    manifest = {file.path: {"bytes": file.bytes, "sha256": file.sha256} for file in files}
    (output / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    files.append(_upload(services, hold, output, MANIFEST))
    tell(1.0, f"{len(files)} files")
    return files


def _upload(services: Services, hold: Hold, output: Path, name: str) -> Artifact:
    """Again and again while the storage is away, for as long as the settings say."""
    job_id, file = hold.lease.job_id, output / name
    key = f"{leases.files_of(job_id, hold.lease.attempt)}/{name}"
    left, pause = services.settings.publish_patience_seconds, FIRST_PAUSE_SECONDS
    while True:
        hold.check()
        try:
            sha256 = services.storage.put_file(key, file, hold.check)
        except StorageUnavailable:
            if left <= 0:
                raise
            logger.warning("the storage is away; the next try to publish is in %.0f s", pause)
            hold.pause(pause)
            left, pause = left - pause, min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            return Artifact(job_id=job_id, path=name, bytes=file.stat().st_size, sha256=sha256, storage_key=key)
