"""What the API takes and says about webhooks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, computed_field

from jobs.schemas.common import Described, Given

EventType = Literal[
    "job.queued",
    "job.running",
    "job.cancelling",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "webhook.test",
]
DeliveryState = Literal["pending", "delivered", "failed"]
Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=2000,
        description="https:// and a public host; the host may also allow http:// and private addresses.",
    ),
]
Events = Annotated[
    tuple[Literal["*"] | EventType, ...],
    Field(min_length=1, max_length=8, strict=False, description="Types of events to send; `*` stands for all."),
]
Description = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$", description="Your own note.")]


class WebhookCreate(Given):
    """An address to be told when jobs change."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"url": "https://example.com/jactus", "events": ["job.succeeded", "job.failed"]}]
        },
    )

    url: Url
    events: Events = ("*",)
    description: Description = ""


class WebhookUpdate(Given):
    """What is left out, or null, stays as it is."""

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    enabled: bool | None = Field(default=None, description="false gives up what still waits to be sent.")


class Webhook(Described):
    object: Literal["webhook"] = "webhook"
    id: str
    url: str
    events: Events
    description: str
    failing_since: datetime | None = Field(description="First of the failures that no success has followed yet.")
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime

    @computed_field
    def enabled(self) -> bool:
        return self.disabled_at is None


class NewWebhook(Webhook):
    """The only answer that ever holds the secret itself."""

    secret: str = Field(description="Verifies the signatures, by any library of standardwebhooks.com.")


class Delivery(Described):
    """One message to one webhook. Its id is the `webhook-id` header, the same on every attempt."""

    object: Literal["delivery"] = "delivery"
    id: str
    event: EventType
    payload: dict[str, Any]
    state: DeliveryState
    attempts: int
    last_status: int | None = Field(description="HTTP status of the last answer; null without an answer.")
    last_error: str | None
    created_at: datetime
    next_at: datetime | None = Field(description="When it is tried next; null once it is over.")
    finished_at: datetime | None
