"""Refusals of the service, beside those of the method; `status` is the HTTP status the API answers with."""

from __future__ import annotations

from typing import ClassVar

from jactus_core.errors import JactusError


class ServiceError(JactusError):
    """Base of the service's own errors."""

    status: ClassVar[int] = 400


class Told(JactusError):
    """What a helper or a run says went wrong, in its own words."""

    def __init__(self, code: str, message: str, param: str | None) -> None:
        super().__init__(message, param)
        self.code = code


class NotFound(ServiceError):
    """No such thing, or not yours."""

    status = 404

    def __init__(self, kind: str, id: str, param: str | None = None) -> None:
        super().__init__(f"There is no {kind} '{id}'.", param)
        self.code = f"{kind}_not_found"


class InvalidParameter(ServiceError):
    """A field that is well-formed, but makes no sense here."""

    code = "invalid_parameter"
    status = 422


class WrongState(ServiceError):
    """The state of the job or webhook forbids it."""

    code = "invalid_state"
    status = 409


class InUse(ServiceError):
    """Something that is still running needs it."""

    code = "in_use"
    status = 409


class IncompleteUpload(ServiceError):
    """Parts have not arrived yet."""

    code = "upload_incomplete"
    status = 409


class CorruptUpload(ServiceError):
    """What arrived is not what was announced."""

    code = "upload_corrupt"
    status = 422


class Forbidden(ServiceError):
    """The API key lacks the scope."""

    code = "missing_scope"
    status = 403


class Unauthorized(ServiceError):
    """No API key, or one that is not valid."""

    code = "invalid_api_key"
    status = 401


class NotReady(ServiceError):
    """A dependency answers, but cannot be worked with."""

    code = "not_ready"
    status = 503


class LimitReached(ServiceError):
    """The API key takes up all that it may; `retry_after` is in seconds."""

    status = 429

    def __init__(self, code: str, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class IdempotencyKeyReused(ServiceError):
    """The same key came with another request before."""

    code = "idempotency_key_reused"
    status = 422


class IdempotencyKeyInFlight(ServiceError):
    """The first request with the key is not answered yet."""

    code = "idempotency_key_in_flight"
    status = 409


class BrokerUnavailable(ServiceError):
    """The message broker does not answer."""

    code = "broker_unavailable"
    status = 503


class StorageUnavailable(ServiceError):
    """The storage of files does not answer, or refuses the service's credentials."""

    code = "storage_unavailable"
    status = 503

    def __init__(self) -> None:
        super().__init__("The storage of files does not answer; try again in a while.")


class Lost(ServiceError):
    """Published, but the storage has it no more."""

    code = "artifact_lost"
    status = 410
