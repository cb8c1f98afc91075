"""What may go wrong between a user and a service."""

from __future__ import annotations

from jobs import schemas


class ApiError(Exception):
    """The service refused; `code` is for programs."""

    def __init__(self, status: int, error: schemas.ErrorBody) -> None:
        super().__init__(f"{error.message} ({error.code})")
        self.status = status
        self.code = error.code
        self.param = error.param


class Away(ApiError):
    """What stands before the service found nobody behind it, or the service is not ready; it may pass."""


class Unreachable(Exception):
    """No answer came, however often it was tried."""


class CorruptDownload(Exception):
    """A file does not have the hash that the service announced."""


class UploadInterrupted(Exception):
    """The connection broke again and again; `upload` is the id to go on with."""

    def __init__(self, upload: str) -> None:
        super().__init__(f"The connection broke again and again; what has arrived is kept as upload '{upload}'.")
        self.upload = upload
