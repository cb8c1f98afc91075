"""Every setting of the service, in one place. Each is an environment variable with the prefix JACTUS_."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from the environment and from `.env`; see `.env.example`.

    With nothing set this is the embedded mode: SQLite, a local folder and a Valkey that `jactus serve` starts itself.
    """

    model_config = SettingsConfigDict(env_prefix="JACTUS_", env_file=".env", extra="ignore", frozen=True)

    data_dir: Path = Field(default=Path(".jactus"), description="Everything the embedded mode keeps.")
    database_url: str = Field(default="", description="postgresql://… or sqlite:///…; empty: SQLite in data_dir.")
    broker_url: str = Field(default="", description="redis://…; empty: an embedded Valkey.")
    storage_url: str = Field(default="", description="s3://bucket/prefix or file:///folder; empty: inside data_dir.")
    work_dir: Path = Field(default=Path(), description="Scratch space of running jobs; empty: inside data_dir.")
    model_root: Path = Field(default=Path(), description="Folder of models that jobs may name; empty: inside data_dir.")

    s3_endpoint: str = Field(default="", description="URL of an S3 server other than Amazon's.")
    s3_region: str = Field(default="us-east-1", description="S3 region.")
    s3_access_key_id: str = Field(default="", description="S3 access key; empty: the environment's own credentials.")
    s3_secret_access_key: SecretStr = Field(default=SecretStr(""), description="S3 secret key.")

    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port of the API; 0 picks a free one.")
    secret_key: SecretStr = Field(default=SecretStr(""), description="Key under which API keys are hashed.")
    api_key: SecretStr = Field(default=SecretStr(""), description="An API key that is accepted from the start.")

    max_upload_bytes: int = Field(default=256 * 2**20, gt=0, description="Largest dataset file, in bytes.")
    signed_url_seconds: int = Field(default=3600, gt=0, le=604800, description="Life of a presigned download link.")

    worker_slots: int = Field(default=1, ge=1, description="Jobs one worker runs at a time.")
    max_attempts: int = Field(default=3, ge=1, description="Runs a job gets when workers die under it.")
    lease_seconds: float = Field(default=30, gt=0, description="Silence after which a worker counts as dead.")
    sweep_seconds: float = Field(default=5, gt=0, description="Pause between two looks for lost jobs.")
    resend_seconds: float = Field(default=60, gt=0, description="Age at which a waiting job's message is sent again.")
    cancel_grace_seconds: float = Field(default=5, ge=0, description="Pause between SIGTERM and SIGKILL of a run.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_inside_data_dir(cls, values: dict[str, object]) -> dict[str, object]:
        data_dir = Path(str(values.get("data_dir") or cls.model_fields["data_dir"].default)).resolve()
        inside = {
            "database_url": f"sqlite:///{data_dir / 'jactus.db'}",
            "storage_url": (data_dir / "storage").as_uri(),
            "work_dir": data_dir / "work",
            "model_root": data_dir / "models",
        }
        given = {name: values.get(name) or default for name, default in inside.items()}
        return {**values, **given, "data_dir": data_dir}

    def environment(self) -> dict[str, str]:
        """The environment of a child process that must see the same settings, secrets included."""
        values = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else str(value) for name, value in self
        }
        return {**os.environ, **{f"JACTUS_{name.upper()}": value for name, value in values.items()}}
