"""Uploading datasets: what is accepted, and what is refused without a trace."""

from __future__ import annotations

import hashlib
import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from huggingface_hub import DatasetInfo, HfApi
from pyarrow import parquet
from sqlalchemy import text, update

from api.app import create_app
from jobs import leftovers
from jobs.clock import now
from jobs.services import Services
from jobs.settings import Settings
from jobs.tables import Leftover, Secret
from jobs.vault import Vault
from tests.api.requests import assert_refused, create_job, kept, upload, upload_reviews
from tests.helpers import signed_in, wait_for
from tests.jactus_core.images import png

CSV = b'text,label\n"one, two",good\nthree,bad\nfour,good\n'
JSONL = b'{"text": "one", "label": 1}\n\n{"text": "two", "label": 0}\n'


def test_a_csv_file_is_profiled(client: TestClient) -> None:
    answer = upload(client, CSV, "reviews.csv")
    assert answer.status_code == 201
    dataset = answer.json()
    assert dataset["object"] == "dataset"
    assert dataset["rows"] == 3
    assert dataset["classes"] == {"bad": 1, "good": 2}
    assert (dataset["name"], dataset["format"], dataset["bytes"]) == ("reviews.csv", "csv", len(CSV))
    assert dataset["sha256"] == hashlib.sha256(CSV).hexdigest()
    assert (dataset["eval_rows"], dataset["all_columns"], dataset["revision"]) == (0, ["text", "label"], None)
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
    dataset = upload(client, content, "reviews.csv", columns='{"text": "body", "label": "stars"}').json()
    assert dataset["columns"] == {"text": "body", "label": "stars"}
    assert dataset["classes"] == {"1": 1, "5": 1}


def test_a_byte_order_mark_is_no_part_of_the_header(client: TestClient) -> None:
    assert upload(client, b"\xef\xbb\xbf" + CSV, "excel.csv").status_code == 201


@pytest.mark.parametrize("filename", ["../../../evil.csv", "..\\..\\evil.csv", "C:\\data\\evil.csv", "/etc/evil.csv"])
def test_a_path_in_the_file_name_is_dropped(client: TestClient, settings: Settings, filename: str) -> None:
    dataset = upload(client, CSV, filename).json()
    assert dataset["name"] == "evil.csv"
    _, [stored] = kept(client, settings)
    assert stored.is_relative_to(settings.data_dir / "storage" / "datasets" / dataset["id"])


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    file = BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


IMAGES = zip_of({f"{name}.png": png() for name in ("train/cat/1", "train/cat/2", "train/dog/3", "test/dog/4")})
PICTURES = [{"image": {"bytes": png(), "path": "1.png"}, "label": label, "width": 2} for label in ("cat", "dog")]
REVIEWS = [{"text": "x", "label": label} for label in ("cat", "dog")]
BALANCED = {"cat": 1, "dog": 1}
QUESTIONS = [{"question": "1 + 1?", "choices": ["2", "3"], "answer": 0}]
PASSAGES = [{"text": "fine", "prompt": "say fine: "}, {"text": "good", "prompt": ""}]


@pytest.mark.parametrize(
    ("filename", "content", "task", "rows", "eval_rows", "all_columns", "classes"),
    [
        ("a.zip", IMAGES, "image-classification", 3, 1, [], {"cat": 2, "dog": 1}),
        ("a.csv", b"text,prompt\nfine,\n", "text-generation", 1, 0, ["text", "prompt"], {}),
        ("a.ndjson", json_lines(PASSAGES), "text-generation", 2, 0, ["text", "prompt"], {}),
        ("a.jsonl", json_lines(QUESTIONS), "multiple-choice", 1, 0, ["question", "choices", "answer"], {}),
        ("a.parquet", parquet_of(QUESTIONS), "multiple-choice", 1, 0, ["question", "choices", "answer"], {}),
        ("a.parquet", parquet_of(PICTURES), "image-classification", 2, 0, ["image", "label", "width"], BALANCED),
        ("a.parquet", parquet_of(REVIEWS), "text-classification", 2, 0, ["text", "label"], BALANCED),
    ],
)
def test_every_task_takes_its_formats(
    client: TestClient,
    filename: str,
    content: bytes,
    task: str,
    rows: int,
    eval_rows: int,
    all_columns: list[str],
    classes: dict[str, int],
) -> None:
    answer = upload(client, content, filename, task=task)
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert (dataset["task"], dataset["rows"], dataset["eval_rows"]) == (task, rows, eval_rows)
    assert (dataset["all_columns"], dataset["classes"]) == (all_columns, classes)


def test_the_first_faults_are_told_with_their_rows_in_whole_sentences(client: TestClient) -> None:
    faulty = "".join(f"x,\n,{row}\n" for row in range(20))
    error = upload(client, f"text,label\n{faulty}".encode(), "faulty.csv").json()["error"]
    assert (error["code"], error["param"]) == ("invalid_dataset", "label")
    told, _, rest = error["message"].rpartition(". ")
    assert [place.split(":")[0] for place in told.split(". ")] == [f"Row {number}" for number in range(2, 7)]
    assert rest == "And 35 more."


@pytest.mark.parametrize(
    ("content", "filename", "code", "param", "said"),
    [
        (b"", "empty.csv", "empty_dataset", "file", "no rows"),
        (b"", "empty.jsonl", "empty_dataset", "file", "no rows"),
        (b"text,label\n", "header.csv", "empty_dataset", "file", "no rows"),
        (CSV, "reviews.xlsx", "invalid_dataset", "file", ".csv"),
        (CSV, "reviews", "invalid_dataset", "file", ".jsonl"),
        (CSV, "images.zip", "invalid_dataset", "file", "not a zip archive"),
        (CSV, "rows.parquet", "invalid_dataset", "file", "not valid Parquet"),
        (b"body,label\none,good\ntwo,bad\n", "wrong.csv", "missing_column", "columns.text", "'body', 'label'"),
        (b'{"text": "one", "class": "a"}\n', "wrong.jsonl", "missing_column", "columns.label", "Row 1"),
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


def test_an_upload_that_the_database_refuses_is_cleared_away(settings: Settings, tmp_path: Path) -> None:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        services: Services = client.app.state.services  # type: ignore[attr-defined]
        with services.database.writing() as session:
            session.execute(text("CREATE TRIGGER full BEFORE INSERT ON datasets BEGIN SELECT RAISE(ABORT, 'no'); END"))
        assert upload(signed_in(client), CSV, "reviews.csv").status_code == 500
        rows, [orphan] = kept(client, settings)
        assert rows == 0
        with services.database.writing() as session:
            session.execute(update(Leftover).values(due_at=now()))
        leftovers.clear(services.database, services.storage)
        assert not orphan.exists()


@pytest.mark.parametrize(
    ("columns", "said"),
    [("[]", "JSON object"), ("{", "JSON object"), ('{"text": 5}', "JSON object"), ('{"text": "a\\u0000"}', "JSON")],
)
def test_columns_that_are_no_mapping_are_refused(
    client: TestClient, settings: Settings, columns: str, said: str
) -> None:
    assert_refused(upload(client, CSV, "reviews.csv", columns=columns), 422, "invalid_parameter", "columns", said)
    assert kept(client, settings) == (0, [])


def test_a_request_without_a_file_is_refused(client: TestClient) -> None:
    assert_refused(client.post("/v1/datasets", data={"columns": "{}"}), 422, "invalid_parameter", "file")


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


# Deleting


def test_a_deleted_dataset_is_gone_with_its_file(client: TestClient, settings: Settings) -> None:
    id = upload(client, CSV, "reviews.csv").json()["id"]
    assert client.delete(f"/v1/datasets/{id}").status_code == 204
    assert_refused(client.get(f"/v1/datasets/{id}"), 404, "dataset_not_found")
    assert_refused(client.delete(f"/v1/datasets/{id}"), 404, "dataset_not_found")
    assert_refused(create_job(client, id), 404, "dataset_not_found", "dataset")
    wait_for(lambda: kept(client, settings) == (0, []), what="the sweep")


def test_a_dataset_that_a_job_needs_stays_until_the_job_is_over(client: TestClient) -> None:
    id = upload_reviews(client)
    job = create_job(client, id).json()["id"]
    assert_refused(client.delete(f"/v1/datasets/{id}"), 409, "in_use", None, job)
    assert client.get(f"/v1/datasets/{id}").status_code == 200
    client.post(f"/v1/jobs/{job}/cancel")
    assert client.delete(f"/v1/datasets/{id}").status_code == 204


# The hub

COMMIT = "c0ffee" * 6 + "beef"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str | None]]:
    """What is asked of a hub that has one private dataset: name, revision, token."""
    asked = []

    def info(_: HfApi, name: str, *, revision: str | None, token: str | None, **options: Any) -> DatasetInfo:
        asked.append((name, revision, token))
        files = [{"rfilename": "a.parquet", "size": 1000}, {"rfilename": "README.md", "size": 24}]
        counts = {"downloads": 0, "likes": 0, "tags": []}
        return DatasetInfo(id=name, sha=COMMIT, siblings=files, **counts)  # type: ignore[no-untyped-call]

    def load(name: str, revision: str | None, token: str | None) -> datasets.DatasetDict:
        asked.append((name, revision, token))
        rows = datasets.Dataset.from_list([{"text": text, "label": text, "more": 1} for text in ("fine", "poor")])
        return datasets.DatasetDict(train=rows, test=rows.select([0]))

    monkeypatch.setattr(HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_dataset_of_the_hub_is_pinned_to_its_commit_and_profiled(
    client: TestClient, settings: Settings, hub: list[Any]
) -> None:
    answer = client.post("/v1/datasets/hub", json={"name": "someone/reviews", "revision": "main"})
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert (dataset["name"], dataset["format"], dataset["revision"]) == ("someone/reviews", "hub", COMMIT)
    assert (dataset["bytes"], dataset["sha256"], dataset["secret"]) == (1024, None, None)
    assert (dataset["rows"], dataset["eval_rows"], dataset["all_columns"]) == (2, 1, ["text", "label", "more"])
    assert hub == [("someone/reviews", "main", None), ("someone/reviews", COMMIT, None)]
    assert kept(client, settings) == (1, [])
    assert create_job(client, dataset["id"]).json()["dataset_revision"] == COMMIT


def test_a_private_dataset_is_read_with_a_stored_token(client: TestClient, settings: Settings, hub: list[Any]) -> None:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    name = "mine"
    sealed = Vault(settings.secret_key.get_secret_value()).seal("hf_token")
    with services.database.writing() as session:
        session.add(Secret(tenant="default", name=name, sealed=sealed, created_at=now()))
        session.add(Secret(tenant="them", name="theirs", sealed=sealed, created_at=now()))

    answer = client.post("/v1/datasets/hub", json={"name": "someone/reviews", "secret": name})
    assert answer.json()["secret"] == name
    assert "hf_token" not in answer.text
    assert {token for _, _, token in hub} == {"hf_token"}
    answer = client.post("/v1/datasets/hub", json={"name": "someone/reviews", "secret": "theirs"})
    assert_refused(answer, 404, "secret_not_found", "secret", "theirs")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"name": "../etc"}, "dataset_not_found", "name"),
        ({"name": "csv"}, "dataset_not_found", "name"),
        ({"name": "tests"}, "dataset_not_found", "name"),
        ({"name": "a/b", "columns": {"text": "body"}}, "missing_column", "columns.text"),
        ({"name": "a/b", "columns": {"texts": "body"}}, "invalid_dataset", "columns"),
        ({"name": "a/b", "task": "poetry"}, "invalid_parameter", "task"),
        ({}, "invalid_parameter", "name"),
    ],
)
def test_a_useless_dataset_of_the_hub_is_refused(
    client: TestClient,
    settings: Settings,
    hub: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    code: str,
    param: str,
) -> None:
    (tmp_path / "here/tests").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert_refused(client.post("/v1/datasets/hub", json=fields), 422, code, param)
    assert kept(client, settings) == (0, [])


def test_a_dataset_of_the_hub_that_is_too_large_is_not_loaded(settings: Settings, hub: list[Any]) -> None:
    small = settings.model_copy(update={"max_large_upload_bytes": 1023})
    with TestClient(create_app(small)) as client:
        answer = signed_in(client).post("/v1/datasets/hub", json={"name": "someone/reviews"})
        assert_refused(answer, 422, "invalid_parameter", "name", "1,024 bytes")
    assert len(hub) == 1


def test_an_unreachable_hub_is_said_to_be_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = client.post("/v1/datasets/hub", json={"name": "someone/reviews"})
    assert_refused(answer, 422, "dataset_not_found", "name", "the hub cannot be reached")
