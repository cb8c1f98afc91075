"""Who may call, and the shape of every refusal."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from tests.api.requests import assert_refused, create_job, upload, upload_reviews
from tests.helpers import API_KEY, make_settings, signed_in


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", f"Basic {API_KEY}", f"Bearer {API_KEY}x", "Bearer ", "é"]
)
def test_nothing_is_told_without_a_valid_key(client: TestClient, authorization: str | None) -> None:
    del client.headers["Authorization"]
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    answer = client.get("/v1/jobs/job_1", headers=headers)  # type: ignore[arg-type]
    assert_refused(answer, 401, "invalid_api_key")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_client_may_ask_for_problem_json(client: TestClient) -> None:
    answer = client.get("/v1/jobs/job_1", headers={"Accept": "application/problem+json"})
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "param", "request_id"}
    assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", "Not Found", 404)
    assert (problem["code"], problem["request_id"]) == ("job_not_found", answer.headers["X-Request-ID"])
    assert "job_1" in problem["detail"]


def test_every_answer_has_a_request_id_of_its_own(client: TestClient) -> None:
    answers = [client.get("/healthz"), client.get("/v1/jobs"), client.get("/nowhere"), client.get("/v1/jobs/job_1")]
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == len(answers)


def test_an_unknown_route_and_a_wrong_method_have_the_shape_too(client: TestClient) -> None:
    assert_refused(client.get("/v2/jobs"), 404, "route_not_found")
    answer = client.delete("/v1/jobs")
    assert_refused(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"]


@pytest.mark.parametrize("body", ["{broken", "", "[]", '"text"', "null"])
def test_a_body_that_is_no_json_object_is_refused(client: TestClient, body: str) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert_refused(answer, 422, "invalid_parameter", None, "body")


@pytest.mark.parametrize(
    "fields",
    [
        {"budgets": ["x" * 10_000]},
        {"model": "x" * 10_000},
        {"x" * 10_000: 1},
        {"metadata": {"x" * 10_000: "value"}},
        {"dataset": ["x" * 10_000]},
    ],
    ids=["value", "text", "name", "key", "list"],
)
def test_a_refusal_does_not_echo_huge_values(client: TestClient, fields: dict[str, object]) -> None:
    answer = create_job(client, "dataset_1", **fields)
    assert answer.status_code == 422
    assert len(answer.text) < 1000


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/%00",
        "/v1/datasets/%00",
        "/v1/jobs?after=%00",
        "/v1/jobs/{job}/artifacts/%00",
        "/v1/jobs/{job}/events?after=99999999999999999999",
    ],
)
def test_what_a_database_cannot_hold_is_the_callers_mistake(
    settings: Settings, request: pytest.FixtureRequest, database: str, path: str
) -> None:
    url = request.getfixturevalue(f"{database}_url")
    with TestClient(create_app(settings.model_copy(update={"database_url": url}))) as client:
        job = create_job(signed_in(client), upload_reviews(client)).json()["id"]
        assert client.get(path.format(job=job)).status_code in (200, 404, 422)


def test_a_huge_header_of_a_file_is_not_echoed(client: TestClient) -> None:
    answer = upload(client, b"," * 9_999 + b"x" * 100_000 + b"\none,two\n", "reviews.csv")
    assert answer.status_code == 422
    assert len(answer.text) < 2000


def test_an_api_without_a_secret_does_not_start(settings: Settings) -> None:
    with pytest.raises(RuntimeError, match="JACTUS_SECRET_KEY"):
        create_app(make_settings(settings.data_dir, secret_key=""))


def test_a_method_that_a_path_lacks_is_refused_with_all_that_it_has(client: TestClient) -> None:
    answer = client.put("/v1/webhooks/webhook_1")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "DELETE, GET, PATCH")
    assert client.put("/v1/jobs/estimate").headers["Allow"] == "POST"


def test_a_value_of_another_type_is_not_taken_for_the_right_one(client: TestClient) -> None:
    assert client.post("/v1/keys", json={"tenant": "a", "limits": {"max_queued_jobs": True}}).status_code == 422
    assert client.get("/v1/jobs", params={"created_after": "0.5"}).status_code == 422
