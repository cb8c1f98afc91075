"""The client against a server that misbehaves as no service should."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cli import client as cli_client
from cli.client import ApiError, Client, CorruptDownload
from jobs import schemas

Answer = Callable[[BaseHTTPRequestHandler], None]
DIGEST_OF_HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@contextmanager
def talking_to(answer: Answer) -> Iterator[Client]:
    """A client of a server that lets `answer` do everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET  # noqa: N815

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
    return lambda handler: send(handler, page if handler.path.endswith("/artifacts") else content)


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


def test_an_answer_of_something_else_is_an_api_error_too() -> None:
    with talking_to(lambda handler: send(handler, b"<h1>Bad Gateway</h1>", 502, "text/html")) as client:
        with pytest.raises(ApiError, match="Bad Gateway") as caught:
            client.job("job_1")
        assert (caught.value.status, caught.value.code) == (502, "unexpected_answer")


def test_events_survive_a_dropped_connection_without_loss_or_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_client, "RECONNECT_SECONDS", 0.01)
    statuses = ["queued", "running", "succeeded"]
    asked: list[str | None] = []

    def one_event_then_drop(handler: BaseHTTPRequestHandler) -> None:
        """Promise more than is sent, so that the connection breaks in the middle."""
        asked.append(handler.headers["Last-Event-ID"])
        number = int(handler.headers["Last-Event-ID"]) + 1
        data = {"number": number, "type": "status", "data": {"status": statuses[number - 1]}}
        data |= {"created_at": datetime.now(UTC).isoformat()}
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(f"id: {number}\nevent: status\ndata: {json.dumps(data)}\n\nid: 99\ndata: half".encode())

    with talking_to(one_event_then_drop) as client:
        seen = [(event.number, event.data["status"]) for event in islice(client.events("job_1"), 5)]

    assert seen == list(enumerate(statuses, start=1))
    assert asked == ["0", "1", "2"]


def test_events_wait_for_a_server_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = 0

    def count(_: float) -> None:
        nonlocal refused
        refused += 1
        if refused == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("cli.client.time.sleep", count)
    with Client("http://127.0.0.1:1", "key") as client, pytest.raises(KeyboardInterrupt):
        list(client.events("job_1"))
    assert refused == 3
