"""What the API takes and says about secrets."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from jobs.schemas.common import Described, Given

SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def _one_word(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("must be printable ASCII without spaces; check that it was copied whole")
    return value


class SecretCreate(Given):
    name: SecretName = Field(description="What jobs call it. A secret of the same name is replaced.")
    value: Annotated[SecretStr, Field(min_length=1, max_length=4096), AfterValidator(_one_word)] = Field(
        description="Such as a token of the hub. It is stored sealed and never shown again."
    )


class Secret(Described):
    """Its name; the value is never shown."""

    object: Literal["secret"] = "secret"
    name: str
    created_at: datetime
