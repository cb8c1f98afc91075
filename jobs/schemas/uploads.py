"""What the API takes and says about large files that arrive in parts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from jobs.schemas.common import Described, Given

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class UploadCreate(Given):
    filename: str = Field(max_length=1000, description="The file's name; its ending tells the format.")
    bytes: int = Field(gt=0, description="Size of the whole file.")
    sha256: Sha256 | None = Field(default=None, description="SHA-256 of the whole file, to be compared at the end.")


class UploadPart(Described):
    """A part that has arrived."""

    number: int = Field(description="From 1.")
    bytes: int
    sha256: str


class Upload(BaseModel):
    """A file on its way here."""

    object: Literal["upload"] = "upload"
    id: str
    filename: str
    bytes: int
    sha256: str | None
    part_bytes: int = Field(description="Size of every part but the last.")
    parts: list[UploadPart] = Field(description="What has arrived; the rest is still to be sent.")
    created_at: datetime
    expires_at: datetime = Field(description="When it is forgotten, unless another part arrives before.")
