"""The client against a server that misbehaves as no service should, and against the real one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from cli.client import ApiError, Client, CorruptDownload, UploadInterrupted, asynchronous, connection
from jobs import schemas
from jobs.settings import Settings
from jobs.states import Status
from tests.api.live import serving
from tests.helpers import API_KEY, QUICK
from tests.tiny import write_reviews

Answer = Callable[[BaseHTTPRequestHandler], None]
DIGEST_OF_HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@contextmanager
def talking_to(answer: Answer) -> Iterator[Client]:
    """A client of a server that lets `answer` do everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            with Client(f"http://127.0.0.1:{server.server_port}", "key") as client:
                yield client
        finally:
            server.shutdown()


def send(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, type: str = "application/json") -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", type)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def one_artifact(path: str, content: bytes) -> Answer:
    """A service with one artifact that should say hello."""
    listed = schemas.Artifact(path=path, bytes=5, sha256=DIGEST_OF_HELLO)
    page = schemas.Page(data=[listed], has_more=False).model_dump_json().encode()
    return lambda handler: send(handler, page if "/artifacts?" in handler.path else content)


def test_a_download_is_checked_and_lies_where_it_belongs(tmp_path: Path) -> None:
    told: list[int] = []
    with talking_to(one_artifact("budget-0.5/model.bin", b"hello")) as client:
        [file] = client.download("job_1", tmp_path, told.append)
    assert file == tmp_path / "budget-0.5" / "model.bin"
    assert file.read_bytes() == b"hello"
    assert sum(told) == 5


def test_a_corrupt_download_is_refused_and_removed(tmp_path: Path) -> None:
    with talking_to(one_artifact("model.bin", b"hellO")) as client, pytest.raises(CorruptDownload, match=r"model\.bin"):
        client.download("job_1", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil"])
def test_a_path_outside_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with talking_to(one_artifact(path, b"hello")) as client, pytest.raises(CorruptDownload, match="outside"):
        client.download("job_1", folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_refusal_carries_its_code_and_param() -> None:
    error = schemas.ErrorBody(type="not_found_error", code="job_not_found", message="There is no job.", param="id")
    body = schemas.ErrorResponse(error=error).model_dump_json().encode()
    with talking_to(lambda handler: send(handler, body, 404)) as client:
        for call in (client.job, client.cancel, client.artifacts, lambda id: list(client.events(id))):
            with pytest.raises(ApiError, match=r"There is no job\. \(job_not_found\)") as caught:
                call("job_1")
            assert (caught.value.status, caught.value.code, caught.value.param) == (404, "job_not_found", "id")


def test_an_answer_of_something_else_is_an_api_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.01)
    with talking_to(lambda handler: send(handler, b"<h1>Bad Gateway</h1>", 502, "text/html")) as client:
        with pytest.raises(ApiError, match="Bad Gateway") as caught:
            client.job("job_1")
        assert (caught.value.status, caught.value.code) == (502, "unexpected_answer")


def test_events_survive_a_dropped_connection_without_loss_or_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.01)
    statuses = ["queued", "running", "failed", "queued", "cancelled"]  # it is retried after its end
    asked: list[str | None] = []

    def one_event_then_drop(handler: BaseHTTPRequestHandler) -> None:
        """Promise more than is sent, so that the connection breaks in the middle; in the end there is nothing left."""
        asked.append(handler.headers["Last-Event-ID"])
        number = int(handler.headers["Last-Event-ID"]) + 1
        if number > len(statuses):
            handler.send_response(204)
            handler.end_headers()
            return
        data = {"number": number, "type": "status", "data": {"status": statuses[number - 1]}}
        data |= {"created_at": datetime.now(UTC).isoformat()}
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(f"id: {number}\nevent: status\ndata: {json.dumps(data)}\n\nid: 99\ndata: half".encode())

    with talking_to(one_event_then_drop) as client:
        events = list(islice(client.events("job_1"), 9))

    assert [(event.number, event.data.status) for event in events if event.type == "status"] == [
        *enumerate(statuses, start=1)
    ]
    assert asked == ["0", "1", "2", "3", "4", "5"]


def test_artifacts_are_all_found_however_many_pages_there_are() -> None:
    def two_per_page(handler: BaseHTTPRequestHandler) -> None:
        after = parse_qs(urlsplit(handler.path).query).get("after", [""])[0]
        left = [path for path in "abcde" if path > after]
        listed = [schemas.Artifact(path=path, bytes=5, sha256=DIGEST_OF_HELLO) for path in left[:2]]
        send(handler, schemas.Page(data=listed, has_more=len(left) > 2).model_dump_json().encode())

    with talking_to(two_per_page) as client:
        assert [artifact.path for artifact in client.artifacts("job_1")] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("path", ["budget-0.5/a b.json", "a?b#c%20.json", "ü.json"])
def test_a_name_may_hold_anything(tmp_path: Path, path: str) -> None:
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        one_artifact(path, b"hello")(handler)

    with talking_to(answer) as client:
        assert client.download("job_1", tmp_path) == [tmp_path / path]
    assert unquote(asked[-1]) == f"/v1/jobs/job_1/artifacts/{path}"


def test_a_log_is_text_whatever_bytes_it_holds() -> None:
    with talking_to(lambda handler: send(handler, b"caf\xe9\n", type="text/plain")) as client:
        assert client.log("job_1", 1) == "caf\ufffd\n"


class Enough(Exception):
    """Ends what would go on for ever."""


def test_events_wait_for_a_server_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[int] = []

    def pause(attempt: int) -> float:
        failed.append(attempt)
        if attempt == 3:
            raise Enough
        return 0.0

    monkeypatch.setattr(asynchronous, "pause", pause)
    with Client("http://127.0.0.1:1", "key") as client, pytest.raises(Enough):
        list(client.events("job_1"))
    assert failed == [1, 2, 3]


class Uploads:
    """A service that takes parts of four bytes and drops connections as often as it is told to."""

    def __init__(self, dropping: int = 0) -> None:
        self.dropping = dropping
        self.parts: dict[int, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.checked: dict[str, Any] = {}

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append((handler.command, handler.path))
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        if handler.path.endswith("/from-upload"):
            self.checked = json.loads(body)
            send(handler, DATASET.model_dump_json().encode(), 201)
        elif handler.command != "PUT":
            send(handler, self.upload().model_dump_json().encode())
        elif self.dropping:
            self.dropping -= 1
            handler.close_connection = True
        else:
            number = int(handler.path.rpartition("/")[2])
            self.parts[number] = body
            send(handler, self.part(number).model_dump_json().encode())

    def part(self, number: int) -> schemas.UploadPart:
        content = self.parts[number]
        return schemas.UploadPart(number=number, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def upload(self) -> schemas.Upload:
        moment = datetime.now(UTC)
        return schemas.Upload(
            id="upload_1",
            filename="reviews.csv",
            bytes=10,
            sha256=None,
            part_bytes=4,
            parts=[self.part(number) for number in sorted(self.parts)],
            created_at=moment,
            expires_at=moment,
        )


DATASET = schemas.Dataset(
    id="dataset_1",
    name="reviews.csv",
    task="text-generation",
    format="csv",
    revision=None,
    secret=None,
    bytes=10,
    sha256=None,
    columns={},
    all_columns=[],
    rows=1,
    eval_rows=0,
    classes={},
    created_at=datetime(2030, 1, 1, tzinfo=UTC),
)


def test_a_large_file_is_sent_in_parts_over_connections_that_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.01)
    file = tmp_path / "reviews.csv"
    file.write_bytes(b"0123456789")
    service = Uploads(dropping=2)
    with talking_to(service) as client:
        dataset = client.upload_dataset(file, "text-generation", {"text": "body"}, large_bytes=9)

    assert dataset.id == "dataset_1"
    assert service.parts == {1: b"0123", 2: b"4567", 3: b"89"}
    assert service.checked == {"upload": "upload_1", "task": "text-generation", "columns": {"text": "body"}}
    assert service.asked.count(("PUT", "/v1/uploads/upload_1/parts/1")) == 3


def test_an_interrupted_upload_goes_on_with_what_has_not_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.01)
    file = tmp_path / "reviews.csv"
    file.write_bytes(b"0123456789")
    service = Uploads(dropping=connection.ATTEMPTS)
    with talking_to(service) as client:
        with pytest.raises(UploadInterrupted, match="upload_1") as caught:
            client.upload_file(file)
        service.parts = {1: b"0123", 2: b"of another file"}
        service.asked.clear()
        assert client.upload_file(file, caught.value.upload) == "upload_1"

    assert service.parts == {1: b"0123", 2: b"4567", 3: b"89"}
    path = "/v1/uploads/upload_1"
    assert service.asked == [("GET", path), ("PUT", f"{path}/parts/2"), ("PUT", f"{path}/parts/3")]


def test_a_small_file_is_sent_at_once(tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_bytes(b"0123456789")
    asked: list[tuple[str, bytes]] = []

    def take(handler: BaseHTTPRequestHandler) -> None:
        asked.append((handler.path, handler.rfile.read(int(handler.headers["Content-Length"]))))
        send(handler, DATASET.model_dump_json().encode(), 201)

    with talking_to(take) as client:
        client.upload_dataset(file, large_bytes=10)
    [(path, body)] = asked
    assert path == "/v1/datasets"
    assert b"0123456789" in body


@pytest.fixture
def real(settings: Settings, tiny_bert: Path) -> Iterator[Client]:
    """Of a real service where no worker runs."""
    changes = {"model_root": tiny_bert.parent, "upload_part_bytes": 2**15}
    with (
        serving(settings.model_copy(update=changes)) as (_, port),
        Client(f"http://127.0.0.1:{port}", API_KEY) as found,
    ):
        yield found


def a_job(client: Client, folder: Path, model: str = "tiny-bert", **fields: Any) -> schemas.JobCreate:
    dataset = client.upload_dataset(write_reviews(folder / "reviews.jsonl", 20))
    return schemas.JobCreate(model=model, dataset=dataset.id, budgets=(0.5,), hyperparameters=QUICK, **fields)


def test_a_job_is_estimated_made_once_cancelled_retried_and_deleted(real: Client, tmp_path: Path) -> None:
    request = a_job(real, tmp_path)
    assert real.estimate(request).feasible
    assert not real.estimate(request.model_copy(update={"budgets": (0.001,)})).feasible

    job = real.create_job(request, idempotency_key="first")
    assert real.create_job(request, idempotency_key="first").id == job.id
    assert real.cancel(job.id).status == Status.CANCELLED
    assert real.retry(job.id).status == Status.QUEUED
    with pytest.raises(ApiError, match="cancel it, then delete it") as caught:
        real.delete(job.id)
    assert (caught.value.status, caught.value.code) == (409, "invalid_state")
    real.cancel(job.id)
    real.delete(job.id)
    with pytest.raises(ApiError, match="job_not_found"):
        real.job(job.id)


def test_jobs_are_all_listed_or_those_that_are_asked_for(
    real: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PAGE", 2)
    request = a_job(real, tmp_path)
    made = [real.create_job(request).id for _ in range(4)]
    ours = real.create_job(request.model_copy(update={"metadata": {"project": "films", "week": "7"}})).id
    real.cancel(made[0])

    assert [job.id for job in real.jobs()] == [ours, *reversed(made)]
    assert [job.id for job in real.jobs(status=Status.CANCELLED)] == made[:1]
    assert [job.id for job in real.jobs(metadata={"project": "films", "week": "7"})] == [ours]
    assert list(real.jobs(metadata={"project": "films", "week": "8"})) == []
    assert list(real.jobs(model="another")) == []


@pytest.mark.parametrize("large_bytes", [asynchronous.LARGE_BYTES, 2**15])
def test_a_model_is_uploaded_at_once_or_in_parts(
    real: Client, tiny_bert: Path, tmp_path: Path, large_bytes: int
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "small"), "zip", tiny_bert))
    model = real.upload_model(archive, large_bytes=large_bytes)

    assert (model.name, model.model_type) == ("small", "bert")
    assert real.preflight(model.id, "text-classification").problems == []
    [problem] = real.preflight(model.id, "image-classification").problems
    assert problem.code == "unsupported_model"
    assert real.create_job(a_job(real, tmp_path, model.id)).model == model.id


def test_a_secret_is_stored_used_and_deleted(real: Client, tmp_path: Path) -> None:
    request = a_job(real, tmp_path, secret="my-token")  # noqa: S106 - its name
    with pytest.raises(ApiError, match="secret_not_found"):
        real.create_job(request)
    assert real.store_secret("my-token", "hf_example").name == "my-token"
    assert real.create_job(request).secret == "my-token"  # noqa: S105 - its name
    real.delete_secret("my-token")
    with pytest.raises(ApiError, match="secret_not_found"):
        real.delete_secret("my-token")
