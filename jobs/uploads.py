"""Large files on their way here, part by part, until a dataset or a model is made of them."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs import leftovers, schemas
from jobs.clock import new_id, now
from jobs.database import insert
from jobs.errors import CorruptUpload, IncompleteUpload, InvalidParameter, NotFound
from jobs.keys import Caller
from jobs.schemas.common import MAX_NAME
from jobs.services import Services
from jobs.settings import Settings
from jobs.tables import Upload, UploadPart

HOURS_BETWEEN_PARTS = 24
SCRATCH = "jactus-upload-"
"""How folders and files for the moment begin."""
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")


def file_name(given: str, param: str) -> str:
    """The name without the folders that some clients send along; raises InvalidParameter for no decent one."""
    name = re.split(r"[/\\]", given)[-1]
    if not name.strip(".") or len(name) > MAX_NAME or CONTROL.search(name):
        raise InvalidParameter(f"A file name has 1 to {MAX_NAME} characters and no control characters.", param)
    return name


def write_hashed(chunks: Iterable[bytes], file: Path) -> str:
    """Write the chunks one after the other; returns the SHA-256 of them all."""
    digest = hashlib.sha256()
    with file.open("wb") as handle:
        for chunk in chunks:
            handle.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def create_upload(session: Session, caller: Caller, request: schemas.UploadCreate, settings: Settings) -> Upload:
    if request.bytes > settings.max_large_upload_bytes:
        raise InvalidParameter(f"This service takes files up to {settings.max_large_upload_bytes:,} bytes.", "bytes")
    upload = Upload(
        id=new_id("upload"),
        tenant=caller.tenant,
        key_id=caller.key_id,
        filename=file_name(request.filename, "filename"),
        bytes=request.bytes,
        sha256=request.sha256,
        created_at=now(),
        expires_at=_expiry(),
    )
    session.add(upload)
    return upload


def find_upload(session: Session, tenant: str, id: str, param: str | None = None, *, lock: bool = False) -> Upload:
    """With `lock` nobody else changes it before this transaction ends."""
    found = session.get(Upload, id, with_for_update=lock or None)
    if found is None or found.tenant != tenant or found.expires_at <= now():
        raise NotFound("upload", id, param)
    return found


def describe(session: Session, upload: Upload, settings: Settings) -> schemas.Upload:
    parts = [schemas.UploadPart.model_validate(part) for part in _arrived(session, upload, settings)]
    facts = {name: getattr(upload, name) for name in ("id", "filename", "bytes", "sha256", "created_at", "expires_at")}
    return schemas.Upload(**facts, part_bytes=settings.upload_part_bytes, parts=parts)


def size_of_part(upload: Upload, number: int, settings: Settings) -> int:
    """How many bytes the part must have; raises InvalidParameter if the file has no such part."""
    count = _count(upload, settings)
    if not 1 <= number <= count:
        raise InvalidParameter(f"The file has parts 1 to {count}, no part {number}.", "number")
    return min(settings.upload_part_bytes, upload.bytes - (number - 1) * settings.upload_part_bytes)


def folder_of(id: str) -> str:
    """Where an upload's parts lie in storage."""
    return f"uploads/{id}"


def keep_part(services: Services, upload: Upload, number: int, file: Path, sha256: str) -> schemas.UploadPart:
    """Store a part in place of the one that had its number."""
    key = f"{folder_of(upload.id)}/part-{number}"
    services.storage.put_file(key, file)
    part = {"bytes": file.stat().st_size, "sha256": sha256, "storage_key": key}
    with services.database.writing() as session:
        found = session.get(Upload, upload.id, with_for_update=True)
        if found is None:  # forgotten while the part was on its way
            leftovers.leave(session, folder_of(upload.id))
        else:
            row = insert(session, UploadPart).values(upload_id=upload.id, number=number, **part)
            session.execute(row.on_conflict_do_update(index_elements=["upload_id", "number"], set_=part))
            found.expires_at = _expiry()
    if found is None:
        raise NotFound("upload", upload.id)
    return schemas.UploadPart(number=number, **part)


def assemble(services: Services, upload: Upload, target: Path) -> str:
    """Write the whole file; returns its SHA-256.

    Raises IncompleteUpload while parts are missing, and CorruptUpload when the parts are not the announced file.
    """
    with services.database.reading() as session:
        parts = _arrived(session, upload, services.settings)
    if missing := sorted(set(range(1, _count(upload, services.settings) + 1)) - {part.number for part in parts}):
        listed = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        raise IncompleteUpload(f"Upload '{upload.id}' still lacks {len(missing)} of its parts: {listed}.", "upload")
    sha256 = write_hashed((chunk for part in parts for chunk in _checked(services, part)), target)
    if upload.sha256 not in (None, sha256):
        raise CorruptUpload(f"The file's SHA-256 is {sha256}, not {upload.sha256} as announced.", "upload")
    return sha256


@contextmanager
def assembled(services: Services, tenant: str, id: str) -> Iterator[tuple[Upload, Path, str]]:
    """An upload with its whole file in a folder for the moment, and the file's SHA-256; raises what `assemble` does."""
    with services.database.reading() as session:
        upload = find_upload(session, tenant, id, "upload")
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
        file = Path(folder) / "upload"
        yield upload, file, assemble(services, upload, file)


def drop(session: Session, upload: Upload) -> None:
    """Forget an upload and let its parts go."""
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload.id))
    session.execute(delete(Upload).where(Upload.id == upload.id))
    leftovers.leave(session, folder_of(upload.id))


def _checked(services: Services, part: UploadPart) -> Iterator[bytes]:
    """The part's content, compared with its hash at the end."""
    digest = hashlib.sha256()
    for chunk in services.storage.chunks(part.storage_key, part.bytes):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != part.sha256:
        raise CorruptUpload(f"Part {part.number} was damaged; send it again.", "upload")


def _arrived(session: Session, upload: Upload, settings: Settings) -> list[UploadPart]:
    """The parts that are here, in order; those from before the part size was changed do not count."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id).order_by(UploadPart.number)
    count = _count(upload, settings)
    return [
        part
        for part in session.scalars(query)
        if part.number <= count and part.bytes == size_of_part(upload, part.number, settings)
    ]


def _count(upload: Upload, settings: Settings) -> int:
    return -(-upload.bytes // settings.upload_part_bytes)


def _expiry() -> datetime:
    return now() + timedelta(hours=HOURS_BETWEEN_PARTS)
