"""Uploading datasets: what is accepted, and what is refused without a trace."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from api.app import create_app
from jobs.settings import Settings
from tests.api.requests import assert_refused, upload
from tests.helpers import signed_in

CSV = b'text,label\n"one, two",good\nthree,bad\nfour,good\n'
JSONL = b'{"text": "one", "label": 1}\n\n{"text": "two", "label": 0}\n'


def kept(client: TestClient, settings: Settings) -> tuple[int, list[Path]]:
    """Rows in the database and objects in storage."""
    objects = [path for path in (settings.data_dir / "storage").rglob("*") if path.is_file()]
    return len(client.get("/v1/datasets").json()["data"]), objects


def test_a_csv_file_is_profiled(client: TestClient) -> None:
    answer = upload(client, CSV, "reviews.csv")
    assert answer.status_code == 201
    dataset = answer.json()
    assert dataset["object"] == "dataset"
    assert dataset["rows"] == 3
    assert dataset["classes"] == {"bad": 1, "good": 2}
    assert (dataset["filename"], dataset["format"], dataset["bytes"]) == ("reviews.csv", "csv", len(CSV))
    assert dataset["sha256"] == hashlib.sha256(CSV).hexdigest()
    assert client.get(f"/v1/datasets/{dataset['id']}").json() == dataset


def test_a_jsonl_file_is_profiled_with_number_labels_in_order(client: TestClient) -> None:
    dataset = upload(client, JSONL, "reviews.JSONL").json()
    assert (dataset["format"], dataset["rows"]) == ("jsonl", 2)
    assert list(dataset["classes"].items()) == [("0", 1), ("1", 1)]


def test_the_stored_object_is_the_uploaded_file(client: TestClient, settings: Settings) -> None:
    upload(client, CSV, "reviews.csv")
    rows, [stored] = kept(client, settings)
    assert rows == 1
    assert stored.read_bytes() == CSV


def test_columns_may_have_other_names(client: TestClient) -> None:
    content = b"body,stars,id\nfine,5,1\npoor,1,2\n"
    dataset = upload(client, content, "reviews.csv", text_column="body", label_column="stars").json()
    assert (dataset["text_column"], dataset["label_column"]) == ("body", "stars")
    assert dataset["classes"] == {"1": 1, "5": 1}


def test_a_byte_order_mark_is_no_part_of_the_header(client: TestClient) -> None:
    assert upload(client, b"\xef\xbb\xbf" + CSV, "excel.csv").status_code == 201


def test_a_path_in_the_file_name_is_dropped(client: TestClient, settings: Settings) -> None:
    dataset = upload(client, CSV, "../../../evil.csv").json()
    assert dataset["filename"] == "evil.csv"
    _, [stored] = kept(client, settings)
    assert stored.is_relative_to(settings.data_dir / "storage" / "datasets" / dataset["id"])


@pytest.mark.parametrize(
    ("content", "filename", "code", "param", "said"),
    [
        (b"", "empty.csv", "empty_dataset", "file", "no rows"),
        (b"", "empty.jsonl", "empty_dataset", "file", "no rows"),
        (b"text,label\n", "header.csv", "empty_dataset", "file", "no rows"),
        (CSV, "reviews.xlsx", "invalid_dataset", "file", ".csv"),
        (CSV, "reviews", "invalid_dataset", "file", ".jsonl"),
        (CSV, "images.zip", "invalid_dataset", "file", "must end in .csv, .jsonl, .ndjson."),
        (b"body,label\none,good\ntwo,bad\n", "wrong.csv", "missing_column", "text_column", "'body', 'label'"),
        (b'{"text": "one", "class": "a"}\n', "wrong.jsonl", "missing_column", "label_column", "Row 1"),
        (b"text,label\none,good\ntwo,good\n", "one.csv", "one_class_dataset", "file", "'good'"),
        ("text,label\ncafé,good\nthé,bad\n".encode("latin-1"), "latin.csv", "invalid_dataset", "file", "UTF-8"),
        (JSONL + b'{"text": "three", "label": \n', "broken.jsonl", "invalid_dataset", "file", "Row 4"),
        (JSONL + b"[1, 2]\n", "list.jsonl", "invalid_dataset", "file", "Row 4"),
        (CSV + b"five,good,extra\n", "wide.csv", "invalid_dataset", "file", "Row 5"),
        (CSV + b"five\n", "narrow.csv", "invalid_dataset", "label", "Row 5"),
        (CSV + b" ,good\n", "blank.csv", "invalid_dataset", "text", "Row 5"),
        (CSV + b'"unclosed,good\n', "quote.csv", "invalid_dataset", "file", "CSV"),
        (JSONL + b'{"text": 5, "label": 1}\n', "number.jsonl", "invalid_dataset", "text", "Row 4"),
    ],
)
def test_a_useless_file_is_refused_with_a_reason_and_nothing_is_kept(
    client: TestClient, settings: Settings, content: bytes, filename: str, code: str, param: str, said: str
) -> None:
    assert_refused(upload(client, content, filename), 422, code, param, said)
    assert kept(client, settings) == (0, [])


def test_an_upload_that_the_database_refuses_leaves_nothing(settings: Settings, postgresql_url: str) -> None:
    on_postgres = settings.model_copy(update={"database_url": postgresql_url})
    with TestClient(create_app(on_postgres)) as client:
        content = b'{"a\\u0000": "one", "label": 1}\n{"a\\u0000": "two", "label": 2}\n'
        answer = upload(signed_in(client), content, "reviews.jsonl", text_column="a\x00")
        assert_refused(answer, 422, "invalid_parameter")
        assert kept(client, on_postgres) == (0, [])


def test_a_request_without_a_file_is_refused(client: TestClient) -> None:
    assert_refused(client.post("/v1/datasets", data={"text_column": "text"}), 422, "invalid_parameter", "file")


@pytest.mark.parametrize("size", [1001, 200_000], ids=["a little", "much"])
def test_a_file_that_is_too_large_is_refused_and_nothing_is_kept(settings: Settings, size: int) -> None:
    small = settings.model_copy(update={"max_upload_bytes": 1000})
    with TestClient(create_app(small)) as client:
        signed_in(client)
        answer = upload(client, CSV + b"x" * (size - len(CSV)), "large.csv")
        assert_refused(answer, 413, "payload_too_large")
        assert kept(client, small) == (0, [])
        assert upload(client, CSV.ljust(1000, b"\n"), "largest.csv").status_code == 201


def test_a_large_body_without_a_length_is_refused(settings: Settings) -> None:
    small = settings.model_copy(update={"max_upload_bytes": 1000})
    with TestClient(create_app(small)) as client:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer: Response = signed_in(client).post(
            "/v1/datasets", content=(b"x" * 1000 for _ in range(200)), headers=headers
        )
        assert_refused(answer, 413, "payload_too_large")


def test_datasets_are_listed_newest_first_in_pages(client: TestClient) -> None:
    ids = [upload(client, CSV, f"{number}.csv").json()["id"] for number in range(3)]
    first = client.get("/v1/datasets", params={"limit": 2}).json()
    second = client.get("/v1/datasets", params={"limit": 2, "after": first["data"][-1]["id"]}).json()
    assert [item["id"] for item in first["data"] + second["data"]] == sorted(ids, reverse=True)
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_an_unknown_dataset_is_not_found(client: TestClient) -> None:
    assert_refused(client.get("/v1/datasets/dataset_1"), 404, "dataset_not_found", None, "dataset_1")
