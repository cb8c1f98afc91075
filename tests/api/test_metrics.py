"""GET /metrics: requests by route, the service's numbers from the database, and no tenant's data."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from jobs.settings import Settings
from tests.api.requests import create_job, upload_reviews
from tests.helpers import TENANT

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
Samples = dict[tuple[str, frozenset[str]], float]


def scrape(client: TestClient) -> Samples:
    """Value by name and label values."""
    answer = client.get("/metrics", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_are_counted_by_route_template(client: TestClient) -> None:
    for id in ("job_1", "job_2"):
        client.get(f"/v1/jobs/{id}")
    for path in ("/a", "/b"):
        client.get(path)
    client.request("BREW", "/v1/jobs")

    found = scrape(client)
    requests = {labels: value for (name, labels), value in found.items() if name == "jactus_http_requests_total"}
    assert requests == {
        frozenset({"GET", "/v1/jobs/{job_id}", "404"}): 2,
        frozenset({"GET", "unmatched", "404"}): 2,
        frozenset({"other", "/v1/jobs", "405"}): 1,
    }
    seconds = "jactus_http_request_duration_seconds"
    assert found[f"{seconds}_count", frozenset({"GET", "/v1/jobs/{job_id}"})] == 2
    assert found[f"{seconds}_bucket", frozenset({"GET", "/v1/jobs/{job_id}", "+Inf"})] == 2


def test_a_waiting_job_and_its_data_are_counted(client: TestClient) -> None:
    assert create_job(client, upload_reviews(client)).status_code == 201
    found = scrape(client)
    assert found["jactus_database_up", frozenset()] == 1
    assert found["jactus_jobs", frozenset({"queued", "cpu"})] == 1
    assert found["jactus_queue_depth", frozenset({"cpu"})] == 1
    assert found["jactus_queue_depth", frozenset({"gpu"})] == 0
    assert found["jactus_storage_bytes", frozenset({"datasets"})] > 100


def test_a_database_that_is_away_does_not_take_the_other_numbers_along(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        client.get("/healthz")
        Path(settings.database_url.removeprefix("sqlite:///")).write_bytes(b"no database " * 1000)
        found = scrape(client)
    assert found["jactus_database_up", frozenset()] == 0
    assert found["jactus_http_requests_total", frozenset({"GET", "/healthz", "200"})] == 1
    assert not any(name == "jactus_jobs" for name, _ in found)


def test_no_number_names_a_tenant_or_what_is_theirs(client: TestClient) -> None:
    dataset = upload_reviews(client)
    job = create_job(client, dataset, metadata={"team": "search"}).json()["id"]
    labels = {value for _, values in scrape(client) for value in values}
    assert not labels & {TENANT, dataset, job, "key_configured", "tiny-bert", "search"}


def test_it_can_be_switched_off(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"metrics_enabled": False}))) as client:
        assert client.get("/metrics").status_code == 404


def test_the_page_explains_every_number(client: TestClient) -> None:
    assert create_job(client, upload_reviews(client)).status_code == 201
    served = set(re.findall(r"^# TYPE (jactus_\w+) ", client.get("/metrics").text, re.MULTILINE))
    explained = set(re.findall(r"^\| `(jactus_\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    created = {name for name in served if name.endswith("_created")}
    assert explained == served - created
