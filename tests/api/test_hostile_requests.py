"""What nobody sends by accident: every answer is one of ours, and nobody learns or breaks anything."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from unittest.mock import ANY

import pytest
import uvicorn
from fastapi.testclient import TestClient
from httpx2 import Response

from api.app import create_app
from jobs.keys import new_key
from jobs.settings import Settings
from tests.api.requests import assert_refused, create_job, make_key, upload, upload_reviews
from tests.helpers import API_KEY, signed_in, wait_for

JSON = {"Content-Type": "application/json"}
CSV = b"text,label\none,good\ntwo,bad\n"
SQL = [
    "' OR '1'='1",
    "'; DROP TABLE jobs; --",
    '"; DELETE FROM jobs; --',
    "%' OR tenant <> '",
    "\\' OR 1=1 --",
    '$."key" OR 1=1',
    "%s %(tenant)s :tenant ?",
    "') UNION SELECT key_hash FROM api_keys --",
]
UNSTORABLE = [
    ', "metadata": {"a": "\\ud800"}',
    ', "metadata": {"a\\udfff": "b"}',
    ', "model": "\\ud800"',
    ', "revision": "\\ud800x"',
    ', "dataset": "\\udc00"',
    ', "secret": "\\udc00"',
    ', "hyperparameters": {"prompt": "\\ud800"}',
    ', "\\ud800": 1',
    ', "metadata": {"a": "\\u0000"}',
    ', "metadata": {"\\u0000": "a"}',
    ', "metadata": {"a\\r\\nInjected: yes": "b"}',
    ', "model": "a\\r\\nInjected: yes"',
    ', "dataset": "a\\r\\nInjected: yes"',
]
NOBODY_S_IDS = [
    "%00",
    "%0d%0aInjected:%20yes",
    "%ff%fe",
    "%ed%a0%80",
    "..%2f..%2fetc%2fpasswd",
    "x" * 10_000,
    "%F0%9F%8E%89",
    "'%20OR%201=1--",
    "%25s",
    "{job_id}",
    "-1",
    "null",
]


@pytest.fixture
def dataset(client: TestClient) -> str:
    return upload_reviews(client)


@pytest.fixture
def either_dataset(either_client: TestClient) -> str:
    return upload_reviews(either_client)


def body(dataset: str, extra: str = "") -> str:
    """A job as JSON text; `extra` begins with a comma."""
    return f'{{"model": "tiny-bert", "dataset": "{dataset}", "budgets": [0.5]{extra}}}'


def post(client: TestClient, content: str | bytes, path: str = "/v1/jobs", **headers: str) -> Response:
    return client.post(path, content=content, headers={**JSON, **headers})


def assert_ours(answer: Response) -> None:
    """A refusal in our shape, or a success; and headers that nobody smuggled anything into."""
    assert answer.status_code in (200, 201, 404, 422), f"{answer.status_code} {answer.text[:500]}"
    for name, value in answer.headers.items():
        assert value.isprintable(), name
        assert value.isascii(), name
    assert "injected" not in answer.headers
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"type", "code", "message", "param", "request_id"}
        assert len(answer.content) < 3000


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"metadata":{"a":', '{"budgets":['], ids=str)
@pytest.mark.parametrize("depth", [500, 900, 5_000, 60_000, 100_000])
def test_json_nested_deeper_than_any_stack_is_refused(
    client: TestClient, settings: Settings, opening: str, depth: int
) -> None:
    closing = {"[": "]", "{": "}"}
    ends = "".join(closing[mark] for mark in reversed(opening) if mark in closing)
    content = opening * depth + "1" + ends * depth
    if len(content) < settings.max_json_bytes:
        assert_refused(post(client, content), 422, "invalid_parameter", ANY)
    else:
        assert_refused(post(client, content), 413, "payload_too_large")


def test_a_deep_value_in_a_field_is_refused_with_its_name(client: TestClient, dataset: str) -> None:
    answer = post(client, body(dataset, ', "metadata": {"a": ' + "[" * 300 + "]" * 300 + "}"))
    assert_refused(answer, 422, "invalid_parameter", "metadata.a")


@pytest.mark.parametrize(
    "extra",
    [
        ', "seed": NaN',
        ', "seed": Infinity',
        ', "quality_bound": NaN',
        ', "quality_bound": Infinity',
        ', "quality_bound": -Infinity',
        ', "quality_bound": 1e999',
        ', "hyperparameters": {"epochs": NaN}',
        ', "hyperparameters": {"epochs": Infinity}',
        ', "hyperparameters": {"shrinkage": NaN}',
        ', "hyperparameters": {"learning_rate": NaN}',
        ', "hyperparameters": {"covariance_floor": Infinity}',
        ', "hyperparameters": {"eval_fraction": NaN}',
        ', "metadata": {"a": NaN}',
        ', "budgets": [NaN]',
        ', "budgets": [-Infinity]',
        ', "max_runtime": NaN',
    ],
)
def test_numbers_that_are_none_are_refused(client: TestClient, dataset: str, extra: str) -> None:
    answer = post(client, body(dataset, extra))
    assert answer.status_code == 422, answer.text
    assert_ours(answer)


@pytest.mark.parametrize(
    "number",
    [2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 10**5000],
    ids=lambda n: f"{n:.1e}" if n < 10**300 else f"{n.bit_length()} bits",
)
def test_numbers_beyond_every_column_break_nothing(either_client: TestClient, either_dataset: str, number: int) -> None:
    text = f"{'-' if number < 0 else ''}{'1' + '0' * 5000 if number == 10**5000 else abs(number)}"
    fields = ("seed", "max_runtime", "retention_days", "quality_bound", "colour")
    deep = ("epochs", "batch_size", "max_length", "calibration_samples", "warmup_samples", "image_size", "shrinkage")
    for field in fields:
        assert_ours(post(either_client, body(either_dataset, f', "{field}": {text}')))
    for field in deep:
        assert_ours(post(either_client, body(either_dataset, f', "hyperparameters": {{"{field}": {text}}}')))
    assert_ours(post(either_client, body(either_dataset, f', "budgets": [{text}]')))
    key = f'{{"tenant": "them", "limits": {{"max_queued_jobs": {text}}}}}'
    assert_ours(post(either_client, key, "/v1/keys"))
    for path in ("/v1/jobs?limit=", "/v1/datasets?limit=", "/v1/keys?limit="):
        assert_refused(either_client.get(path + text), 422, "invalid_parameter", "limit")
    job = create_job(either_client, either_dataset).json()["id"]
    assert_refused(either_client.get(f"/v1/jobs/{job}/events?after={text}"), 422, "invalid_parameter", "after")
    assert_ours(either_client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": text}))


def test_text_that_no_database_can_hold_is_refused(either_client: TestClient, either_dataset: str) -> None:
    for extra in UNSTORABLE:
        answer = post(either_client, body(either_dataset, extra))
        assert_refused(answer, 422, "invalid_parameter", ANY)
        assert_ours(answer)


def test_text_of_every_script_comes_back_as_it_was(either_client: TestClient, either_dataset: str) -> None:
    notes = {"a": "línea\r\nInjected: yes\t\x7f\u2028", "b": "日本語 🎉 \u202e", "c": '"\\/<script>'}
    answer = create_job(either_client, either_dataset, metadata=notes)
    assert_ours(answer)
    assert answer.json()["metadata"] == notes
    assert either_client.get(answer.headers["Location"]).json()["metadata"] == notes


def test_sql_in_metadata_is_text(either_client: TestClient, either_settings: Settings) -> None:
    client = signed_in(either_client, make_key(either_settings, "them"))
    create_job(client, upload_reviews(client), metadata={"key": "theirs"})
    signed_in(client)
    dataset = upload_reviews(client)
    create_job(client, dataset, metadata={"key": "plain"})
    marked = {text: create_job(client, dataset, metadata={"key": text}).json()["id"] for text in SQL}

    for text, id in marked.items():
        found = client.get("/v1/jobs", params={"metadata": f"key:{text}"}).json()["data"]
        assert [(job["id"], job["metadata"]) for job in found] == [(id, {"key": text})]
        assert_refused(client.get("/v1/jobs", params={"metadata": f"{text}:x"}), 422, "invalid_parameter", "metadata")
        for name in ("model", "after", "status"):
            answer = client.get("/v1/jobs", params={name: text})
            assert_ours(answer)
            assert "theirs" not in answer.text
    assert len(client.get("/v1/jobs").json()["data"]) == 1 + len(SQL)


def test_ids_that_nobody_gave_out_are_not_found(either_client: TestClient) -> None:
    client = either_client
    places = (
        "jobs/{}",
        "jobs/{}/events",
        "jobs/{}/artifacts",
        "jobs/{}/attempts",
        "jobs/job_1/artifacts/{}",
        "datasets/{}",
    )
    for id in NOBODY_S_IDS:
        for place in places:
            answer = client.get(f"/v1/{place.format(id)}")
            assert_ours(answer)
            assert answer.status_code in (404, 422), id
        assert_ours(client.delete(f"/v1/keys/{id}"))
        for query in ("after", "model", "metadata"):
            assert_ours(client.get(f"/v1/jobs?{query}={id}"))


@pytest.mark.parametrize(
    "filename", ["a\r\nInjected: yes.csv", 'a".csv', "\x00.csv", "日本.csv", "a;b=c.csv", ".csv", "x" * 5000 + ".csv"]
)
def test_file_names_reach_no_header(either_client: TestClient, filename: str) -> None:
    assert_ours(upload(either_client, CSV, filename))


@pytest.mark.parametrize(
    "charset", ["unicode_escape", "utf-7", "utf-16", "idna", "rot13", "no-such", "raw_unicode_escape"]
)
def test_file_names_in_strange_encodings_break_nothing(client: TestClient, charset: str) -> None:
    form = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="\\ud800.csv"\r\n\r\n' + CSV + b"\r\n--x--\r\n"
    )
    headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = client.post("/v1/datasets", content=form, headers=headers)
    assert_ours(answer)


@pytest.mark.parametrize(
    "content", [b"", b"--x", b"--x\r\n\r\n", b"\xff" * 100, b"--x\r\nContent-Disposition: form-data\r\n\r\n"]
)
@pytest.mark.parametrize(
    "type", ["multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary="]
)
def test_broken_forms_are_refused(client: TestClient, content: bytes, type: str) -> None:
    answer = client.post("/v1/datasets", content=content, headers={"Content-Type": type})
    assert answer.status_code == 422
    assert_ours(answer)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe{}", b'{"model": "\xff"}', b"\xef\xbb\xbf{}", b"\x00", b"[" * 10, b"1" * 5000]
)
def test_bodies_that_are_no_json_are_refused(client: TestClient, content: bytes) -> None:
    answer = post(client, content)
    assert answer.status_code == 422
    assert_ours(answer)


def test_of_a_field_that_comes_twice_the_last_counts(client: TestClient, dataset: str) -> None:
    answer = post(client, body(dataset, ', "seed": 1, "seed": 2'))
    assert answer.json()["seed"] == 2


def test_queries_and_headers_beyond_reason_break_nothing(client: TestClient) -> None:
    assert_ours(client.get("/v1/jobs?" + "&".join(f"a{number}=1" for number in range(5000))))
    assert_ours(client.get("/v1/jobs?" + "&".join(f"metadata=a{number}:1" for number in range(100))))
    assert_ours(client.get("/v1/jobs", params={"after": "x" * 50_000}))
    assert_ours(client.get("/v1/jobs", headers={"Accept": "x" * 50_000, "X-Request-ID": "y" * 50_000}))
    assert client.get("/v1/jobs", headers={"Authorization": "Bearer " + "x" * 50_000}).status_code == 401


def test_a_json_body_that_is_too_large_is_refused_announced_or_not(client: TestClient, dataset: str) -> None:
    large = body(dataset, ', "metadata": {"a": "' + "x" * 2**20 + '"}')
    assert_refused(post(client, large), 413, "payload_too_large", None, f"{2**20:,}")
    pieces = (large[start : start + 65536].encode() for start in range(0, len(large), 65536))
    answer = client.post("/v1/jobs", content=pieces, headers=JSON)
    assert_refused(answer, 413, "payload_too_large", None, f"{2**20:,}")
    for type in ("multipart/form-data; boundary=x", "application/octet-stream", "text/plain"):
        answer = client.post("/v1/jobs", content=large, headers={"Content-Type": type})
        assert_refused(answer, 413, "payload_too_large")
    assert create_job(client, dataset).status_code == 201


@contextmanager
def listening(settings: Settings) -> Iterator[tuple[str, int]]:
    """The application behind a real server, whose log the test sees."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_for(lambda: server.started, what="the server")
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def told(address: tuple[str, int], head: str) -> str:
    """The first line of the answer to a request whose body never comes."""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        return connection.makefile("rb").readline().decode().strip()


@pytest.mark.parametrize(
    "authorization",
    ["", "Authorization: Basic x\n", f"Authorization: Bearer {new_key()}\n"],
    ids=["nobody", "basic", "an unknown key"],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/datasets", "/v1/keys"])
def test_a_stranger_s_body_is_not_read(settings: Settings, path: str, authorization: str) -> None:
    request = f"POST {path} HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: 99\n{authorization}\n"
    with listening(settings) as address:
        assert told(address, request) == "HTTP/1.1 401 Unauthorized"


def test_a_body_that_is_announced_too_large_is_not_read(settings: Settings) -> None:
    request = f"POST /v1/jobs HTTP/1.1\nHost: x\nAuthorization: Bearer {API_KEY}\nContent-Type: application/json\n"
    with listening(settings) as address:
        assert told(address, f"{request}Content-Length: 9999999999\n\n").startswith("HTTP/1.1 413")


def test_keys_do_not_reach_the_log(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    key = make_key(settings)
    with listening(settings) as address, caplog.at_level(logging.DEBUG):
        head = f"GET /v1/jobs?key={key}&after={key} HTTP/1.1\nHost: x\n"
        assert told(address, f"{head}Authorization: Bearer {key}\n\n") == "HTTP/1.1 200 OK"
        assert told(address, f"{head}Authorization: Bearer {key}x\n\n").startswith("HTTP/1.1 401")
        assert told(address, f"GET /v1/jobs/{key} HTTP/1.1\nHost: x\nAuthorization: Bearer {key}\n\n").endswith("Found")
        wait_for(lambda: sum(record.name == "jactus.access" for record in caplog.records) >= 3, what="the access log")
    assert key not in caplog.text
    assert key[:20] not in caplog.text
    assert json.dumps(key) not in caplog.text
