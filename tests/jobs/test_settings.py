"""Settings: where things lie by default, and what a child process inherits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from jobs.settings import Settings
from tests.helpers import make_settings

ROOT = Path(__file__).parents[2]


def test_everything_lies_inside_the_data_folder_by_default(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data")
    assert settings.database_url == f"sqlite:///{tmp_path}/data/jactus.db"
    assert settings.storage_url == f"file://{tmp_path}/data/storage"
    assert settings.work_dir == tmp_path / "data" / "work"
    assert settings.model_root == tmp_path / "data" / "models"


def test_the_data_folder_does_not_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = make_settings(Path("data"))
    assert settings.data_dir == tmp_path / "data"
    assert settings.work_dir == tmp_path / "data" / "work"


def test_an_empty_variable_means_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "STORAGE_URL", "WORK_DIR", "MODEL_ROOT", "BROKER_URL"):
        monkeypatch.setenv(f"JACTUS_{name}", "")
    assert make_settings(tmp_path).storage_url == (tmp_path / "storage").as_uri()
    assert make_settings(tmp_path).work_dir == tmp_path / "work"


def test_a_child_process_sees_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(
        tmp_path,
        database_url="postgresql://user:pass%40word@db/jactus",
        model_root=tmp_path / "models of ours",
        s3_secret_access_key=SecretStr("s3 secret"),
        lease_seconds=1.5,
        port=0,
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings(_env_file=None) == settings


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    secrets = {name: f"hidden {name}" for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
    assert set(secrets) == {"secret_key", "api_key", "s3_secret_access_key"}
    shown = repr(make_settings(tmp_path, **secrets)) + make_settings(tmp_path, **secrets).model_dump_json()
    assert "hidden" not in shown


def test_every_setting_is_in_the_example_file() -> None:
    named = set(re.findall(r"JACTUS_[A-Z0-9_]+", (ROOT / ".env.example").read_text(encoding="utf-8")))
    assert named == {f"JACTUS_{name.upper()}" for name in Settings.model_fields}
