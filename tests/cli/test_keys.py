"""`jactus keys` on a database that no service runs on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner, Result

from api.app import create_app
from cli.commands import WRONG_USAGE
from cli.embedded import with_secrets
from cli.main import app
from jobs.settings import Settings
from tests.helpers import signed_in, wait_for


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JACTUS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["keys", *words])


def make(*words: str) -> tuple[str, str]:
    """Id and key."""
    answer = run("create", "--tenant", "them", *words)
    assert answer.exit_code == 0, answer.output
    found = re.search(r"^ID +(\S+)\nAPI key +(\S+)$", answer.output, re.MULTILINE)
    assert found
    return found[1], found[2]


def test_a_key_made_here_opens_the_service_until_it_is_revoked(data_dir: Path) -> None:
    id, key = make("--name", "of the pipeline", "--scope", "read", "--max-queued-jobs", "5")
    assert (data_dir / "secrets.json").stat().st_mode & 0o777 == 0o600
    with TestClient(create_app(with_secrets(Settings()))) as client:
        own = signed_in(client, key).get("/v1/keys/me").json()
        assert (own["tenant"], own["scopes"], own["limits"]["max_queued_jobs"]) == ("them", ["read"], 5)
        assert run("revoke", id).exit_code == 0
        wait_for(lambda: client.get("/v1/keys/me").status_code == 401, what="noticing that the key is revoked")


def test_the_list_tells_keys_apart_and_shows_none(data_dir: Path) -> None:
    (first, key), (second, _) = make("--name", "of the pipeline"), make()
    run("revoke", second)
    shown = run("list").output
    lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith(" key_")}
    assert set(lines) == {first, second}
    assert ("valid" in lines[first], "revoked" in lines[second]) == (True, True)
    assert "of the pipeline" in lines[first]
    assert f"…{key[-4:]}" in lines[first]
    assert key not in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["revoke", "key_1"], "There is no key 'key_1'"),
        (["create", "--tenant", "them", "--scope", "all"], "scopes.0"),
        (["create", "--tenant", ""], "tenant"),
    ],
    ids=str,
)
def test_a_mistake_is_explained(data_dir: Path, words: list[str], said: str) -> None:
    answer = run(*words)
    assert answer.exit_code != 0
    assert said in answer.output
    assert "Traceback" not in answer.output


def test_a_database_elsewhere_needs_the_secret_of_its_service(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, postgresql_url: str
) -> None:
    monkeypatch.setenv("JACTUS_DATABASE_URL", postgresql_url)
    answer = run("create", "--tenant", "them")
    assert answer.exit_code == WRONG_USAGE
    assert "JACTUS_SECRET_KEY" in answer.output
    monkeypatch.setenv("JACTUS_SECRET_KEY", "the service's")
    assert make()[0] in run("list").output
    assert not data_dir.exists()
