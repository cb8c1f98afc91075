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


class EmptyDataset(InvalidDataset):
    """There are no rows, or none to train on, or none to evaluate on."""

    code = "empty_dataset"


class MissingColumn(InvalidDataset):
    """A named column does not exist."""

    code = "missing_column"


class OneClassDataset(InvalidDataset):
    """A classifier needs at least two classes."""

    code = "one_class_dataset"


class UnknownLabel(InvalidDataset):
    """The evaluation rows hold a label that the training rows do not."""

    code = "unknown_label"


class UndecodableImage(InvalidDataset):
    """A file is not an image, or not a whole one."""

    code = "undecodable_image"


class HostileArchive(InvalidDataset):
    """An archive with names or sizes that honest ones do not have."""

    code = "hostile_archive"


class NothingToPredict(InvalidDataset):
    """Every label is masked: no token is left for the loss once the rows are cut to `max_length`."""

    code = "nothing_to_predict"


class DatasetNotFound(JactusError):
    """No such file, folder or dataset on the hub."""

    code = "dataset_not_found"


class ModelNotFound(JactusError):
    """No such model on this host or on the hub."""

    code = "model_not_found"


class GatedModel(ModelNotFound):
    """The model is on the hub, but its owner decides who may read it."""

    code = "gated_model"


class UnsupportedModel(JactusError):
    """The model exists, but cannot be loaded or compressed."""

    code = "unsupported_model"


class UnsafeWeights(UnsupportedModel):
    """The weights are not in safetensors; other formats can run code."""

    code = "unsafe_weights"


class RemoteCode(UnsupportedModel):
    """The model needs Python code of its own."""

    code = "remote_code"


class InfeasibleBudget(JactusError):
    """Even the smallest rank everywhere costs more than the budget allows."""

    code = "infeasible_budget"


class UnionTooSmall(JactusError):
    """The union of subspaces cannot carry the rank that the budget asks for."""

    code = "union_too_small"


class NonFiniteLoss(JactusError):
    """The loss or a gradient became NaN or infinite."""

    code = "non_finite_loss"


class UnfaithfulCheckpoint(JactusError):
    """A saved checkpoint, loaded in a clean process, does not give the logits it gave before."""

    code = "unfaithful_checkpoint"
