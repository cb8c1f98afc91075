"""What the client does about connections that break and services that are busy: it tries again, where that is safe."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cli.client import ApiError, Client, CorruptDownload, Unreachable, connection, transfers
from jobs import schemas
from tests.cli.test_client import send, talking_to


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.01)


ERROR = schemas.ErrorBody(type="server_error", code="planning_busy", message="Try again.")
BUSY = schemas.ErrorResponse(error=ERROR).model_dump_json().encode()
REQUEST = schemas.JobCreate(model="tiny", dataset="dataset_1", budgets=(0.5,))


class Flaky:
    """A service that drops connections or answers with a status, one entry of the plan per request, then with 404."""

    def __init__(self, *plan: int | None) -> None:
        self.plan = [*plan]
        self.keys: list[str | None] = []

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.keys.append(handler.headers["Idempotency-Key"])
        handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        status = self.plan.pop(0) if self.plan else 404
        if status is None:
            handler.close_connection = True
        else:
            send(handler, BUSY, status)


@pytest.mark.parametrize("trouble", [None, 429, 502, 503, 504])
def test_what_changes_nothing_is_asked_again(trouble: int | None) -> None:
    service = Flaky(trouble, trouble)
    with talking_to(service) as client, pytest.raises(ApiError) as caught:
        client.job("job_1")
    assert (caught.value.status, len(service.keys)) == (404, 3)


def test_a_job_is_asked_for_again_under_the_same_key() -> None:
    service = Flaky(None, 503)
    with talking_to(service) as client, pytest.raises(ApiError):
        client.create_job(REQUEST)
    first, *further = service.keys
    assert first
    assert further == [first, first]
    with talking_to(service) as client, pytest.raises(ApiError):
        client.create_job(REQUEST)
    assert service.keys[-1] not in (first, None), "every job has a key of its own"


@pytest.mark.parametrize("trouble", [None, 502, 503, 504, 500])
def test_what_may_have_been_carried_out_is_not_sent_again(trouble: int | None) -> None:
    service = Flaky(trouble)
    with talking_to(service) as client, pytest.raises((ApiError, Unreachable)):
        client.retry("job_1")
    assert len(service.keys) == 1


def test_a_refusal_for_too_many_requests_is_waited_out_whatever_was_asked() -> None:
    service = Flaky(429)
    with talking_to(service) as client, pytest.raises(ApiError) as caught:
        client.retry("job_1")
    assert (caught.value.status, len(service.keys)) == (404, 2)


def test_it_waits_as_long_as_the_service_says(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(429 if len(slept) < 2 else 404)
        handler.send_header("Retry-After", "7" if not slept else "86400")
        handler.end_headers()

    monkeypatch.setattr("cli.client.connection.anyio.sleep", sleep)
    with talking_to(answer) as client, pytest.raises(ApiError):
        client.job("job_1")
    assert slept == [7.0, connection.LONGEST_PAUSE_SECONDS]


def test_a_deletion_whose_answer_was_lost_is_one() -> None:
    service = Flaky(None)
    with talking_to(service) as client:
        client.delete_dataset("dataset_1")
    assert len(service.keys) == 2
    with talking_to(Flaky()) as client, pytest.raises(ApiError, match="planning_busy"):
        client.delete_dataset("dataset_1")


def test_a_service_that_is_not_there_is_named() -> None:
    with Client("http://127.0.0.1:1", "key") as client, pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1"):
        client.job("job_1")


CONTENT = bytes(range(256)) * 8


class Files:
    """Artifacts, with ranges unless told otherwise; drops each connection after `drop_after` bytes, `drops` times."""

    def __init__(self, *paths: str, ranges: bool = True, drops: int = 0, drop_after: int = 0) -> None:
        digest = hashlib.sha256(CONTENT).hexdigest()
        listed = [schemas.Artifact(path=path, bytes=len(CONTENT), sha256=digest) for path in paths]
        self.page = schemas.Page(data=listed, has_more=False).model_dump_json().encode()
        self.ranges = ranges
        self.drops, self.drop_after = drops, drop_after
        self.asked: list[str | None] = []
        self.lock = threading.Lock()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        if "/artifacts?" in handler.path:
            return send(handler, self.page)
        wanted = handler.headers["Range"] if self.ranges else None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        with self.lock:
            self.asked.append(handler.headers["Range"])
            dropped, self.drops = self.drops > 0, self.drops - 1
        handler.send_response(206 if wanted else 200)
        handler.send_header("Content-Length", str(len(CONTENT) - start))
        handler.end_headers()
        handler.wfile.write(CONTENT[start : start + self.drop_after] if dropped else CONTENT[start:])
        handler.close_connection = dropped
        return None


@pytest.fixture
def told() -> Iterator[list[int]]:
    """What a progress bar hears; in the end it must be full and no fuller."""
    sizes: list[int] = []
    yield sizes
    assert sum(sizes) == len(CONTENT)


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path, told: list[int]) -> None:
    service = Files("model.bin", drops=connection.ATTEMPTS + 1, drop_after=100)
    with talking_to(service) as client:
        client.download("job_1", tmp_path, told.append)
    assert (tmp_path / "model.bin").read_bytes() == CONTENT
    assert service.asked == [None, *(f"bytes={100 * done}-" for done in range(1, connection.ATTEMPTS + 2))]


def test_a_download_that_brings_nothing_any_more_gives_up_and_keeps_what_it_has(tmp_path: Path) -> None:
    service = Files("model.bin", drops=100)
    (tmp_path / "model.bin.part").write_bytes(CONTENT[:100])
    with talking_to(service) as client, pytest.raises(Unreachable, match="go on where it stopped"):
        client.download("job_1", tmp_path)
    assert (tmp_path / "model.bin.part").read_bytes() == CONTENT[:100]
    assert len(service.asked) == connection.ATTEMPTS


def test_a_second_call_fetches_only_what_is_missing(tmp_path: Path, told: list[int]) -> None:
    (tmp_path / "model.bin.part").write_bytes(CONTENT[:1000])
    service = Files("model.bin")
    with talking_to(service) as client:
        client.download("job_1", tmp_path, told.append)
        assert service.asked == ["bytes=1000-"]
        client.download("job_1", tmp_path)
    assert service.asked == ["bytes=1000-"], "what is there is checked, not fetched"
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]


def test_a_file_that_was_changed_here_is_fetched_anew(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(CONTENT[:-1] + b"?")
    with talking_to(Files("model.bin")) as client:
        client.download("job_1", tmp_path)
    assert (tmp_path / "model.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("left_over", [b"of another attempt", CONTENT[:-1] + b"?", CONTENT + b"and more"])
def test_what_was_left_over_and_is_wrong_is_replaced(tmp_path: Path, told: list[int], left_over: bytes) -> None:
    (tmp_path / "model.bin.part").write_bytes(left_over)
    with talking_to(Files("model.bin")) as client:
        client.download("job_1", tmp_path, told.append)
    assert (tmp_path / "model.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_of_it(tmp_path: Path, told: list[int]) -> None:
    (tmp_path / "model.bin.part").write_bytes(CONTENT[:1000])
    service = Files("model.bin", ranges=False)
    with talking_to(service) as client:
        client.download("job_1", tmp_path, told.append)
    assert (tmp_path / "model.bin").read_bytes() == CONTENT
    assert service.asked == ["bytes=1000-"]


def test_files_come_side_by_side_but_not_all_at_once(tmp_path: Path) -> None:
    files, now, most = Files(*"abcdefgh"), 0, 0
    together = threading.Barrier(transfers.AT_ONCE)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        nonlocal now, most
        if "/artifacts?" not in handler.path:
            with files.lock:
                now += 1
                most = max(most, now)
            together.wait(timeout=30)  # nobody is served before so many have come
            with files.lock:
                now -= 1
        files(handler)

    with talking_to(answer) as client:
        found = client.download("job_1", tmp_path)
    assert [file.name for file in found] == [*"abcdefgh"]
    assert most == transfers.AT_ONCE


def test_one_corrupt_file_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    files = Files("good.bin", "worse.bin")

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("worse.bin"):
            return send(handler, CONTENT[:-1] + b"?")
        return files(handler)

    with talking_to(answer) as client, pytest.raises(CorruptDownload, match=r"worse\.bin"):
        client.download("job_1", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["good.bin"]


def test_events_go_on_behind_a_proxy_whose_service_starts_anew() -> None:
    service = Flaky(503, 502, None, 204)
    with talking_to(service) as client:
        assert list(client.events("job_1")) == []
    assert len(service.keys) == 4
