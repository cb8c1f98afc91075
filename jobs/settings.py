"""Every setting of the service, in one place. Each is an environment variable with the prefix JACTUS_."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.classes import DeviceClass


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
    s3_public_endpoint: str = Field(default="", description="The S3 server's URL for users; empty: s3_endpoint.")
    s3_region: str = Field(default="us-east-1", description="S3 region.")
    s3_access_key_id: str = Field(default="", description="S3 access key; empty: the environment's own credentials.")
    s3_secret_access_key: SecretStr = Field(default=SecretStr(""), description="S3 secret key.")

    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port of the API; 0 picks a free one.")
    secret_key: SecretStr = Field(default=SecretStr(""), description="Hashes API keys and seals secrets.")
    api_key: SecretStr = Field(default=SecretStr(""), description="An admin's API key that is accepted from the start.")

    max_upload_bytes: int = Field(default=256 * 2**20, gt=0, description="Largest file sent at once, in bytes.")
    max_large_upload_bytes: int = Field(default=20 * 2**30, gt=0, description="Largest file sent in parts, in bytes.")
    upload_part_bytes: int = Field(default=64 * 2**20, gt=0, description="Size of a part of a large file, in bytes.")
    max_json_bytes: int = Field(default=2**20, gt=0, description="Largest JSON body of a request, in bytes.")
    max_queued_jobs: int = Field(default=1000, ge=0, description="Waiting jobs per API key; 0: any number.")
    max_running_jobs: int = Field(default=0, ge=0, description="Running jobs per API key; 0: any number.")
    max_storage_bytes: int = Field(default=0, ge=0, description="Stored bytes per API key; 0: any number.")
    max_requests_per_minute: int = Field(default=0, ge=0, description="Requests per minute and API key; 0: any number.")
    signed_url_seconds: int = Field(default=3600, gt=0, le=604800, description="Life of a presigned download link.")

    webhook_timeout_seconds: float = Field(default=10, gt=0, description="Time a webhook has to answer.")
    webhook_disable_hours: float = Field(default=120, gt=0, description="Failures in a row that disable a webhook.")
    allow_private_addresses: bool = Field(default=False, description="Webhooks may use private addresses and http://.")

    planning_seconds: float = Field(default=30, gt=0, description="Time the API gives itself to look at a model.")
    planner_address: str = Field(
        default="",
        pattern=r"^(.+:\d{1,5})?$",
        description="host:port of `python -m jobs.planners`, which looks at models for the API; empty: the API does.",
    )
    device_memory: dict[DeviceClass, int] = Field(
        default={"cpu": 0},
        min_length=1,
        description="Kinds of workers there are, with the memory of their device in bytes (0: no bound), as JSON.",
    )
    worker_classes: tuple[DeviceClass, ...] = Field(
        default=("cpu",), min_length=1, description="Kinds of jobs a worker takes: cpu, gpu, gpu-large, as JSON."
    )
    worker_slots: int = Field(default=1, ge=1, description="Jobs one worker runs at a time.")
    warm_start: bool = Field(
        default=True, description="Keep a process ready for the next job: seconds saved for half a gigabyte of memory."
    )
    max_attempts: int = Field(default=3, ge=1, description="Runs a job gets when workers die under it.")
    lease_seconds: float = Field(default=30, gt=0, description="Silence after which a worker counts as dead.")
    sweep_seconds: float = Field(default=5, gt=0, description="Pause between two looks for lost jobs.")
    resend_seconds: float = Field(default=60, gt=0, description="Age at which a waiting job's message is sent again.")
    drain_seconds: float = Field(default=30, ge=0, description="Time a run has to end once its worker is asked to end.")
    publish_patience_seconds: float = Field(default=600, ge=0, description="How long publishing waits for the storage.")
    min_free_disk_bytes: int = Field(default=256 * 2**20, ge=0, description="Runs stop when less of work_dir is free.")
    copy_stages: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Keep finished stages in storage for other machines; auto: unless the storage is a local folder.",
    )
    cancel_grace_seconds: float = Field(default=5, ge=0, description="Pause between SIGTERM and SIGKILL of a run.")

    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="console, json, or auto: console on a terminal, json elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least serious lines that are logged: debug, info, warning or error."
    )
    metrics_enabled: bool = Field(default=True, description="Whether GET /metrics answers.")
    otlp_endpoint: str = Field(
        default="", description="Base URL of an OpenTelemetry collector (OTLP over HTTP); empty: no traces."
    )

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

    @property
    def copies_stages(self) -> bool:
        if self.copy_stages == "auto":
            return not self.storage_url.startswith("file:")
        return self.copy_stages == "always"

    def environment(self) -> dict[str, str]:
        """The environment of a child process that must see the same settings, secrets included."""
        return {**os.environ, **{f"JACTUS_{name.upper()}": as_variable(value) for name, value in self}}


def as_variable(value: object) -> str:
    """As it is written into the environment."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(value) if isinstance(value, tuple | dict | bool) else str(value)
