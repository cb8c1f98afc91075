"""Downloads: file by file, a checkpoint at once, and the log of a run."""

from __future__ import annotations

import hashlib
import io
import tarfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.archive import Archive
from cli.client import Client
from jobs import leases, store
from jobs.services import Services
from jobs.settings import Settings
from jobs.storage import CHUNK_BYTES
from jobs.tables import Artifact, Dataset
from tests.api.live import serving
from tests.api.requests import assert_refused
from tests.helpers import API_KEY, add_dataset, add_job, s3_settings, signed_in
from tests.proxy import forwarding
from tests.servers import S3

MODEL = "budget-0.5/model.safetensors"
CONTENT = bytes(range(256))
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILES = {
    MODEL: CONTENT,
    'budget-0.5/a "name"; ü.json': b"odd",
    "budget-0.5/empty": b"",
    f"budget-0.5/{'long/' * 60}{'name' * 40}": b"far away",
    "budget-0.50/neighbour": b"not inside",
    "manifest.json": b"{}",
}


@pytest.fixture
def services(settings: Settings) -> Iterator[Services]:
    opened = Services.open(settings)
    yield opened
    opened.close()


@pytest.fixture
def dataset(services: Services, tmp_path: Path) -> Dataset:
    return add_dataset(services.database, tmp_path, 20)


def publish(services: Services, dataset: Dataset, folder: Path, files: dict[str, bytes]) -> str:
    """A job that published these files."""
    id = add_job(services.database, dataset)
    with services.database.writing() as session:
        lease = leases.claim(session, id, 30)
        assert lease is not None
    published = []
    for path, content in files.items():
        (folder / "file").write_bytes(content)
        key = f"{leases.files_of(id, 1)}/{path}"
        digest = services.storage.put_file(key, folder / "file")
        published.append(Artifact(job_id=id, path=path, bytes=len(content), sha256=digest, storage_key=key))
    with services.database.writing() as session:
        assert leases.succeed(session, lease, {}, published)
    return id


@pytest.fixture
def job(client: TestClient, services: Services, dataset: Dataset, tmp_path: Path) -> str:
    (tmp_path / "storage" / "secret").write_text("not yours")
    return publish(services, dataset, tmp_path, FILES)


@pytest.fixture
def in_s3(settings: Settings, s3_server: S3) -> Iterator[tuple[TestClient, Services]]:
    """A service whose files lie in S3, which its users reach at another address."""
    with forwarding(s3_server.endpoint) as proxy:
        given = s3_settings(s3_server, uuid.uuid4().hex)
        s3_secret = type(settings.s3_secret_access_key)(given.pop("s3_secret_access_key"))
        given |= {"s3_secret_access_key": s3_secret, "s3_public_endpoint": proxy.url, "signed_url_seconds": 60}
        here = settings.model_copy(update=given)
        opened = Services.open(here)
        with TestClient(create_app(here), follow_redirects=False) as client:
            yield signed_in(client), opened
        opened.close()


def test_artifacts_are_listed_with_size_and_hash(client: TestClient, job: str) -> None:
    listed = client.get(f"/v1/jobs/{job}/artifacts").json()
    assert listed["has_more"] is False
    assert [file["path"] for file in listed["data"]] == sorted(FILES)
    [model] = [file for file in listed["data"] if file["path"] == MODEL]
    assert model == {"object": "artifact", "path": MODEL, "bytes": len(CONTENT), "sha256": DIGEST}


def test_a_page_of_artifacts_goes_on_where_the_last_one_ended(client: TestClient, job: str) -> None:
    found: list[str] = []
    more = True
    while more:
        after = found[-1] if found else ""
        page = client.get(f"/v1/jobs/{job}/artifacts", params={"limit": 2, "after": after}).json()
        assert 0 < len(page["data"]) <= 2
        found += [file["path"] for file in page["data"]]
        more = page["has_more"]
    assert found == sorted(FILES)


@pytest.mark.parametrize("path", FILES)
def test_a_download_is_the_published_file(client: TestClient, job: str, path: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/artifacts/{quote(path)}")
    assert answer.status_code == 200
    assert answer.content == FILES[path]
    assert answer.headers["ETag"] == f'"{hashlib.sha256(FILES[path]).hexdigest()}"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    kind, *names = answer.headers["Content-Disposition"].split("; ")
    assert kind == "attachment"
    name = quote(path.rpartition("/")[2], safe="")
    assert names == [f'filename="{name}"', f"filename*=utf-8''{name}"]


def test_a_download_can_be_asked_about_without_its_bytes(client: TestClient, job: str) -> None:
    answer = client.head(f"/v1/jobs/{job}/artifacts/{MODEL}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer.headers["Content-Length"], answer.headers["Accept-Ranges"]) == (str(len(CONTENT)), "bytes")
    assert answer.headers["ETag"] == f'"{DIGEST}"'


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"Range": "bytes=200-"}, CONTENT[200:]),
        ({"Range": "bytes=0-9"}, CONTENT[:10]),
        ({"Range": "bytes=-5"}, CONTENT[-5:]),
        ({"Range": "bytes=200-9999"}, CONTENT[200:]),
        ({"Range": "bytes=200-", "If-Range": f'"{DIGEST}"'}, CONTENT[200:]),
    ],
    ids=str,
)
def test_a_download_can_be_resumed(client: TestClient, job: str, asked: dict[str, str], part: bytes) -> None:
    answer = client.get(f"/v1/jobs/{job}/artifacts/{MODEL}", headers=asked)
    assert (answer.status_code, answer.content) == (206, part)
    assert answer.headers["Content-Length"] == str(len(part))
    assert answer.headers["Content-Range"].endswith(f"/{len(CONTENT)}")


def test_a_file_that_is_another_now_comes_whole(client: TestClient, job: str) -> None:
    asked = {"Range": "bytes=200-", "If-Range": '"another"'}
    answer = client.get(f"/v1/jobs/{job}/artifacts/{MODEL}", headers=asked)
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_range_past_the_end_is_refused(client: TestClient, job: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/artifacts/{MODEL}", headers={"Range": "bytes=256-"})
    assert_refused(answer, 416, "invalid_request", None, "bytes=256-")
    assert answer.headers["Content-Range"].endswith("*/256")


@pytest.mark.parametrize("asked", ["bytes=a-b", "lines=1-2", "bytes=9-1", "bytes"])
def test_a_range_that_makes_no_sense_is_refused(client: TestClient, job: str, asked: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/artifacts/{MODEL}", headers={"Range": asked})
    assert_refused(answer, 422, "invalid_parameter", None, asked)


@pytest.mark.parametrize("known", [f'"{DIGEST}"', f'"other", W/"{DIGEST}"', "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_file_that_the_client_has_is_not_sent_again(client: TestClient, job: str, known: str, method: str) -> None:
    answer = client.request(method, f"/v1/jobs/{job}/artifacts/{MODEL}", headers={"If-None-Match": known})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == f'"{DIGEST}"'


def test_a_file_that_the_client_has_otherwise_is_sent(client: TestClient, job: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/artifacts/{MODEL}", headers={"If-None-Match": '"other"'})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize(
    "path",
    [
        "..%2F..%2F..%2Fsecret",
        "budget-0.5/..%2F..%2F..%2F..%2Fsecret",
        "%2Fetc%2Fpasswd",
        "budget-0.5",
        "other.json",
        "%00",
    ],
)
def test_a_path_that_was_not_published_is_not_found(client: TestClient, job: str, path: str) -> None:
    assert_refused(client.get(f"/v1/jobs/{job}/artifacts/{path}"), 404, "artifact_not_found")


@pytest.mark.parametrize("path", [f"artifacts/{MODEL}", "archives/budget-0.5.tar"])
@pytest.mark.parametrize("where", ["locally", "in S3"])
def test_a_file_that_the_storage_lost_is_said_to_be_lost(
    where: str, path: str, request: pytest.FixtureRequest, dataset: Dataset, tmp_path: Path
) -> None:
    if where == "locally":
        client, services = request.getfixturevalue("client"), request.getfixturevalue("services")
    else:
        client, services = request.getfixturevalue("in_s3")
    id = publish(services, dataset, tmp_path, FILES)
    services.storage.delete_under(f"{leases.files_of(id, 1)}/budget-0.5")
    assert_refused(client.get(f"/v1/jobs/{id}/{path}"), 410, "artifact_lost", None, "budget-0.5/")


def test_files_in_object_storage_are_a_link_away(
    in_s3: tuple[TestClient, Services], dataset: Dataset, tmp_path: Path
) -> None:
    client, services = in_s3
    id = publish(services, dataset, tmp_path, FILES)
    answer = client.get(f"/v1/jobs/{id}/artifacts/{MODEL}")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (307, "no-store")
    link = answer.headers["Location"]
    assert link.startswith(services.settings.s3_public_endpoint)
    assert httpx2.get(link).content == CONTENT
    part = httpx2.get(link, headers={"Range": "bytes=200-"})
    assert (part.status_code, part.content) == (206, CONTENT[200:])
    tampered = link.replace("model.safetensors", "empty")
    assert httpx2.get(tampered).status_code == 403
    head = client.head(f"/v1/jobs/{id}/artifacts/{MODEL}")
    assert head.status_code == 307
    assert httpx2.head(head.headers["Location"]).headers["Content-Length"] == str(len(CONTENT))


def test_the_client_follows_links_without_giving_its_key_away(
    in_s3: tuple[TestClient, Services], dataset: Dataset, tmp_path: Path
) -> None:
    _, services = in_s3
    id = publish(services, dataset, tmp_path, {MODEL: CONTENT, "manifest.json": b"{}"})
    with serving(services.settings) as (_, port), Client(f"http://127.0.0.1:{port}", API_KEY) as client:
        client.download(id, tmp_path / "here")  # S3 refuses a link that comes with another Authorization
    assert (tmp_path / "here" / MODEL).read_bytes() == CONTENT


def test_a_storage_that_is_away_is_an_error_to_try_again(
    in_s3: tuple[TestClient, Services], dataset: Dataset, tmp_path: Path, s3_server: S3
) -> None:
    _, services = in_s3
    id = publish(services, dataset, tmp_path, FILES)
    away = services.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"})
    with TestClient(create_app(away)) as client:
        for path in (f"artifacts/{MODEL}", "archives/budget-0.5.tar", "attempts/1/log"):
            answer = signed_in(client).get(f"/v1/jobs/{id}/{path}")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "storage_unavailable"
            assert "127.0.0.1" not in answer.text


@pytest.mark.parametrize("where", ["locally", "in S3"])
def test_a_checkpoint_comes_as_one_archive_with_every_byte(
    where: str, request: pytest.FixtureRequest, dataset: Dataset, tmp_path: Path
) -> None:
    if where == "locally":
        client, services = request.getfixturevalue("client"), request.getfixturevalue("services")
    else:
        client, services = request.getfixturevalue("in_s3")
    id = publish(services, dataset, tmp_path, FILES)
    url = f"/v1/jobs/{id}/archives/budget-0.5.tar"

    answer = client.get(url)

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/x-tar"
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert f'filename="{id}-budget-0.5.tar"' in answer.headers["Content-Disposition"]
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
        assert {(member.uid, member.mode) for member in archive} == {(0, 0o644)}
    inside = {path: content for path, content in FILES.items() if path.startswith("budget-0.5/")}
    unpacked = [path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "unpacked").as_posix(): path.read_bytes() for path in unpacked} == inside

    again = client.get(url)
    assert (again.content, again.headers["ETag"]) == (answer.content, answer.headers["ETag"])
    head = client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["Content-Length"], head.headers["ETag"]) == (str(len(answer.content)), answer.headers["ETag"])
    known = client.get(url, headers={"If-None-Match": answer.headers["ETag"]})
    assert (known.status_code, known.content) == (304, b"")


def test_an_archive_of_other_files_is_another(
    client: TestClient, services: Services, dataset: Dataset, tmp_path: Path
) -> None:
    ids = [publish(services, dataset, tmp_path, {"budget-0.5/x": content}) for content in (b"one", b"two")]
    tags = {client.head(f"/v1/jobs/{id}/archives/budget-0.5.tar").headers["ETag"] for id in ids}
    assert len(tags) == 2


def test_an_archive_is_never_in_memory_as_a_whole(services: Services, dataset: Dataset, tmp_path: Path) -> None:
    id = publish(services, dataset, tmp_path, {"budget-0.5/large": bytes(2 * CHUNK_BYTES + 1), "budget-0.5/x": b"x"})
    with services.database.reading() as session:
        archive = Archive(store.folder(session, id, "budget-0.5"), datetime.now(UTC))
    sizes = [len(chunk) for chunk in archive.chunks(services.storage)]
    assert max(sizes) == CHUNK_BYTES
    assert sum(sizes) == archive.bytes


@pytest.mark.parametrize("folder", ["budget-0.7", "budget", "budget-0.5%2Flong", "..", "manifest.json", "%25", "_"])
def test_an_archive_of_nothing_is_not_found(client: TestClient, job: str, folder: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/archives/{folder}.tar")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("archive_not_found", "route_not_found")


def test_an_unfinished_job_has_no_archive(client: TestClient, services: Services, dataset: Dataset) -> None:
    id = add_job(services.database, dataset)
    assert client.get(f"/v1/jobs/{id}/artifacts").json()["data"] == []
    assert_refused(client.get(f"/v1/jobs/{id}/archives/budget-0.5.tar"), 404, "archive_not_found")


def test_a_log_is_there_while_the_run_goes_on_and_can_be_followed(
    client: TestClient, services: Services, dataset: Dataset, tmp_path: Path
) -> None:
    id = add_job(services.database, dataset)
    url = f"/v1/jobs/{id}/attempts/1/log"
    assert_refused(client.get(url), 404, "attempt_not_found")
    with services.database.writing() as session:
        leases.claim(session, id, 30)
    assert_refused(client.get(url), 404, "log_not_found")
    log = tmp_path / "run.log"
    read = b""
    for line in (b"loading\n", "händchen\n".encode()):
        with log.open("ab") as handle:
            handle.write(line)
        services.storage.put_file(leases.log_of(id, 1), log)
        answer = client.get(url, headers={"Range": f"bytes={len(read)}-"})
        assert (answer.status_code, answer.content) == (206, line)
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        read += answer.content
    assert client.get(url).text == "loading\nhändchen\n"
    assert_refused(client.get(url, headers={"Range": f"bytes={len(read)}-"}), 416, "invalid_request")


def test_a_log_in_object_storage_is_a_link_away(
    in_s3: tuple[TestClient, Services], dataset: Dataset, tmp_path: Path
) -> None:
    client, services = in_s3
    id = publish(services, dataset, tmp_path, {})
    assert_refused(client.get(f"/v1/jobs/{id}/attempts/1/log"), 404, "log_not_found")
    (tmp_path / "run.log").write_text("done\n")
    services.storage.put_file(leases.log_of(id, 1), tmp_path / "run.log")
    answer = client.get(f"/v1/jobs/{id}/attempts/1/log")
    assert answer.status_code == 307
    assert httpx2.get(answer.headers["Location"]).text == "done\n"


@pytest.mark.parametrize("number", ["0", "-1", "x", str(2**31)])
def test_an_attempt_that_cannot_be_is_refused(client: TestClient, job: str, number: str) -> None:
    assert_refused(client.get(f"/v1/jobs/{job}/attempts/{number}/log"), 422, "invalid_parameter", "number")


@pytest.mark.parametrize("path", ["artifacts", f"artifacts/{MODEL}", "archives/budget-0.5.tar", "attempts/1/log"])
def test_files_of_another_tenant_are_not_found(
    client: TestClient, services: Services, tmp_path: Path, path: str
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    id = publish(services, add_dataset(services.database, folder, 20, tenant="other"), tmp_path, FILES)
    assert_refused(client.get(f"/v1/jobs/{id}/{path}"), 404, "job_not_found")
