"""What the API takes and says about API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from jobs.schemas.common import Described, Given, Name

Scope = Literal["read", "write", "admin"]
Label = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
Bound = Annotated[int | None, Field(ge=0, le=2**53 - 1)]  # what JSON can say exactly


class Limits(Given):
    """What one key may take up. Null: as the settings of the service say; 0: without limit."""

    max_queued_jobs: Bound = Field(default=None, description="Jobs that wait at a time.")
    max_running_jobs: Bound = Field(default=None, description="Jobs that run at a time; further ones wait.")
    max_storage_bytes: Bound = Field(default=None, description="Bytes of datasets, models, uploads and artifacts.")
    max_requests_per_minute: Bound = Field(default=None, description="Requests within any minute.")


class KeyCreate(Given):
    tenant: Name = Field(description="Whose resources the key opens; a new name is a new tenant.")
    name: Label = Field(default="", description="What the key is for.")
    scopes: tuple[Scope, ...] = Field(
        default=("read", "write"),
        min_length=1,
        max_length=3,
        strict=False,
        description="read: look and download; write: create, change and delete; admin: make and revoke keys.",
    )
    limits: Limits = Limits()


class KeyUpdate(Given):
    """What is left out stays as it is."""

    name: Label | None = None
    limits: Limits | None = Field(default=None, description="Takes the place of all limits of the key.")


class ApiKey(Described):
    object: Literal["api_key"] = "api_key"
    id: str
    tenant: str
    name: str
    hint: str = Field(description="The key's last four characters.")
    scopes: tuple[Scope, ...]
    limits: Limits
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class NewApiKey(ApiKey):
    """The only answer that ever holds the key itself."""

    key: str


class Usage(BaseModel):
    """What a key takes up now."""

    queued_jobs: int
    running_jobs: int
    storage_bytes: int


class OwnApiKey(ApiKey):
    """The caller's own key; its limits are those in force, settings included."""

    usage: Usage
