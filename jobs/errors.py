"""Refusals of the service, beside those of the method; `status` is the HTTP status the API answers with."""

from __future__ import annotations

from typing import ClassVar

from jactus_core.errors import JactusError


class ServiceError(JactusError):
    """Base of the service's own errors."""

    status: ClassVar[int] = 400


class NotFound(ServiceError):
    """No such thing, or not yours."""

    status = 404

    def __init__(self, kind: str, id: str, param: str | None = None) -> None:
        super().__init__(f"There is no {kind} '{id}'.", param)
        self.code = f"{kind}_not_found"


class WrongState(ServiceError):
    """The job's state forbids it."""

    code = "invalid_state"
    status = 409


class Unauthorized(ServiceError):
    """No API key, or one that is not valid."""

    code = "invalid_api_key"
    status = 401


class BrokerUnavailable(ServiceError):
    """The message broker does not answer."""

    code = "broker_unavailable"
    status = 503
