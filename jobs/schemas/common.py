"""Shapes that every part of the contract shares."""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints

Item = TypeVar("Item")
MAX_NAME = 200
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00-\x1f]*$")]


class Given(BaseModel):
    """What a request says: fields that exist, with values of their very types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Described(BaseModel):
    """Made of a row of a table."""

    model_config = ConfigDict(from_attributes=True)


class ErrorBody(BaseModel):
    """Why a request failed: `code` for programs, `message` for people, `param` names the culprit."""

    type: str
    code: str
    message: str
    param: str | None = None
    request_id: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorBody


class Page(BaseModel, Generic[Item]):
    """Part of a list; pass the last item's id (for events: number) as `after` to get the next part."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
