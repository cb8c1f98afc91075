"""Uploads on both databases and on both kinds of storage: parts that race, change, vanish."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from jobs import leftovers, retention, schemas, uploads
from jobs.clock import now
from jobs.errors import CorruptUpload, IncompleteUpload, InvalidParameter, NotFound
from jobs.keys import Caller
from jobs.services import Services
from jobs.tables import Leftover, Upload, UploadPart
from tests.helpers import NOBODY_LISTENS, TENANT, make_settings, s3_settings
from tests.servers import S3

CONTENT = b"0123456789"
PART = 4


@pytest.fixture
def services(tmp_path: Path, database_url: str) -> Iterator[Services]:
    settings = make_settings(tmp_path, database_url=database_url, broker_url=NOBODY_LISTENS, upload_part_bytes=PART)
    opened = Services.open(settings)
    yield opened
    opened.close()


def announce(services: Services, sha256: str | None = None) -> Upload:
    request = schemas.UploadCreate(filename="a.bin", bytes=len(CONTENT), sha256=sha256)
    with services.database.writing() as session:
        return uploads.create_upload(session, Caller(TENANT, "key_tests"), request, services.settings)


def send(services: Services, upload: Upload, number: int, content: bytes | None = None) -> None:
    content = content if content is not None else CONTENT[(number - 1) * PART : number * PART]
    with tempfile.NamedTemporaryFile() as file:  # each sender has its own, as a request has
        file.write(content)
        file.flush()
        uploads.keep_part(services, upload, number, Path(file.name), hashlib.sha256(content).hexdigest())


def assemble(services: Services, upload: Upload) -> bytes:
    target = services.settings.data_dir / "assembled"
    assert uploads.assemble(services, upload, target) == hashlib.sha256(target.read_bytes()).hexdigest()
    return target.read_bytes()


def test_parts_are_put_together_in_order_however_they_arrive(services: Services) -> None:
    upload = announce(services, hashlib.sha256(CONTENT).hexdigest())
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: send(services, upload, number), [3, 1, 2, 2, 1, 3]))
    assert assemble(services, upload) == CONTENT


def test_parts_come_from_object_storage_too(services: Services, s3_server: S3, tmp_path: Path) -> None:
    settings = services.settings.model_copy(update=s3_settings(s3_server, "uploads-test"))
    on_s3 = Services.open(type(settings).model_validate(settings.model_dump()))
    upload = announce(on_s3)
    for number in (1, 2, 3):
        send(on_s3, upload, number)
    assert assemble(on_s3, upload) == CONTENT
    with on_s3.database.writing() as session:
        uploads.drop(session, upload)
    leftovers.clear(on_s3.database, on_s3.storage)
    with pytest.raises(Exception, match="part-1"):
        on_s3.storage.size_of(f"{uploads.folder_of(upload.id)}/part-1")
    on_s3.close()


def test_a_part_that_was_changed_behind_the_service_is_found(services: Services) -> None:
    upload = announce(services)
    for number in (1, 2, 3):
        send(services, upload, number)
    stored = services.storage.local_path(f"{uploads.folder_of(upload.id)}/part-2")
    assert stored is not None
    stored.write_bytes(b"????")
    with pytest.raises(CorruptUpload, match="Part 2 was damaged"):
        assemble(services, upload)


def test_parts_of_another_size_do_not_count_after_the_setting_was_changed(services: Services) -> None:
    upload = announce(services)
    for number in (1, 2, 3):
        send(services, upload, number)
    settings = services.settings.model_copy(update={"upload_part_bytes": 5})
    changed = replace(services, settings=settings)
    with pytest.raises(IncompleteUpload, match="2 of its parts: 1, 2"):
        assemble(changed, upload)
    send(changed, upload, 1, CONTENT[:5])
    send(changed, upload, 2, CONTENT[5:])
    assert assemble(changed, upload) == CONTENT


def test_each_part_gives_the_upload_another_day(services: Services) -> None:
    upload = announce(services)
    soon = now() + timedelta(minutes=1)
    with services.database.writing() as session:
        session.execute(update(Upload).values(expires_at=soon))
    send(services, upload, 1)
    with services.database.reading() as session:
        assert uploads.find_upload(session, TENANT, upload.id).expires_at > soon


def test_a_part_of_an_upload_that_was_forgotten_meanwhile_goes_again(services: Services) -> None:
    upload = announce(services)
    with services.database.writing() as session:
        uploads.drop(session, upload)
    leftovers.clear(services.database, services.storage)

    with pytest.raises(NotFound, match=upload.id):
        send(services, upload, 1)
    leftovers.clear(services.database, services.storage)

    stored = services.storage.local_path(f"{uploads.folder_of(upload.id)}/part-1")
    assert stored is not None
    assert not stored.exists()
    with services.database.reading() as session:
        assert session.scalars(select(UploadPart)).all() == []
        assert session.scalars(select(Leftover)).all() == []


def test_an_upload_that_was_never_finished_is_swept_away(services: Services) -> None:
    upload = announce(services)
    send(services, upload, 1)
    with services.database.writing() as session:
        session.execute(update(Upload).values(expires_at=now()))
    with services.database.writing() as session:
        retention.expire(session)
    leftovers.clear(services.database, services.storage)
    stored = services.storage.local_path(f"{uploads.folder_of(upload.id)}/part-1")
    assert stored is not None
    assert not stored.exists()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("a.csv", "a.csv"),
        ("x/y/a.csv", "a.csv"),
        ("x\\y\\a.csv", "a.csv"),
        ("C:\\a.csv", "a.csv"),
        ("naïve.csv", "naïve.csv"),
    ],
)
def test_a_file_name_is_without_folders(given: str, name: str) -> None:
    assert uploads.file_name(given, "file") == name


@pytest.mark.parametrize("given", ["", ".", "..", "/", "a\0.csv", "a\x7f.csv", "a\ud800.csv", "x" * 201])
def test_what_is_no_decent_file_name_is_refused(given: str) -> None:
    with pytest.raises(InvalidParameter, match="A file name has 1 to 200 characters"):
        uploads.file_name(given, "file")
