"""Every failure a user can cause or meet, each with a stable code and a sentence that says what to do."""

from __future__ import annotations


class JactusError(Exception):
    """Base of all errors of the method; `code` is for programs, the message for people."""

    code: str = "internal_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def as_dict(self) -> dict[str, str | None]:
        return {"code": self.code, "message": self.message, "param": self.param}


class InvalidDataset(JactusError):
    """The dataset cannot be read or cannot be learned from."""

    code = "invalid_dataset"


class MissingColumn(InvalidDataset):
    """A named column does not exist."""

    code = "missing_column"


class OneClassDataset(InvalidDataset):
    """A classifier needs at least two classes."""

    code = "one_class_dataset"


class ModelNotFound(JactusError):
    """No such model on this host or on the hub."""

    code = "model_not_found"


class UnsupportedModel(JactusError):
    """The model exists, but cannot be loaded safely or compressed."""

    code = "unsupported_model"


class InfeasibleBudget(JactusError):
    """Even rank one everywhere costs more than the budget allows."""

    code = "infeasible_budget"


class UnionTooSmall(JactusError):
    """The union of subspaces cannot carry the rank that the budget asks for."""

    code = "union_too_small"


class NonFiniteLoss(JactusError):
    """The loss or a gradient became NaN or infinite."""

    code = "non_finite_loss"
