"""The one description of a compression: what to keep, how to calibrate, how to finetune, where to compute."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from jactus_core.tasks import TASKS, TaskName

Energy = Annotated[float, Field(gt=0, le=1)]
Budget = Annotated[float, Field(gt=0, le=1)]
Intensity = Annotated[float, Field(ge=0, le=1)]

IMAGE_ADAPTER_SHARE = 0.75
"""Of the epochs, by default, those before the calibration of a classifier of images."""
REPAIR_SHARE = 0.4
"""Of the epochs, by default, what would come after the compression of a language model if it took everything away.

It is less by as much as the smallest budget keeps.
"""


def _descending(budgets: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(budgets)) != len(budgets):
        raise ValueError("budgets must be distinct")
    return tuple(sorted(budgets, reverse=True))


Budgets = Annotated[
    tuple[Budget, ...],
    Field(
        min_length=1,
        max_length=16,
        strict=False,
        description="Fractions of the parameters to keep, in (0, 1]. One calibration serves them all.",
    ),
    AfterValidator(_descending),
]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="Seeds the split, the sampling and the finetuning.")]


def _not_half(dtype: object) -> object:
    if dtype == "float16":
        raise ValueError("float16 gradients underflow; use bfloat16 or float32")
    return dtype


class Hyperparameters(BaseModel):
    """How to calibrate and how to finetune. Everything has a default; a user may leave them all."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_length: int = Field(default=128, ge=8, le=131072, description="Tokens kept of each text.")
    image_size: int | None = Field(default=None, ge=16, le=2048, description="Pixels per side; null: the model's own.")
    prompt: str = Field(
        default="Question: {question}\nAnswer:",
        max_length=4000,
        description="What a multiple-choice question looks like to the model; may name {question} and {choices}.",
    )
    eval_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows held out for evaluation.")

    warmup_samples: int = Field(default=1024, ge=1, description="Training rows used to warm up a new task head.")
    warmup_epochs: int = Field(default=50, ge=1, le=1000, description="Head-only epochs on the frozen body's outputs.")

    adapter_share: Literal["auto"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        default="auto",
        description="Share of the epochs that the model is tuned by low-rank adapters before it is calibrated; auto: "
        "0.92 for language models at a budget of 0.8, 0.76 at 0.4; 0.75 for images, 0 for texts that are classified.",
    )
    adapter_start: Literal["auto", "zero", "principal"] = Field(
        default="auto",
        description="zero: the adapters change nothing at first, as in LoRA; principal: they start as the 16 leading "
        "directions of each weight, as in PiSSA; auto: zero for language models, principal for classifiers.",
    )

    calibration_samples: int = Field(default=512, ge=1, description="Training rows used to estimate covariances.")
    fisher: Literal["auto", "empirical", "sampled"] = Field(
        default="auto",
        description="empirical: gradients at the true labels; sampled: at labels drawn from the model's own answers, "
        "of a language model at every token; auto: sampled for language models, empirical for classifiers.",
    )
    shrinkage: Literal["ledoit-wolf", "oas"] | Intensity = Field(
        default="ledoit-wolf", description="How far a covariance moves towards the scaled identity, or 0 to 1."
    )
    covariance_floor: float = Field(default=1e-4, gt=0, le=1, description="Tikhonov floor, relative to trace / size.")

    weighting: Literal["fisher", "input", "none"] = Field(
        default="fisher",
        description="fisher: input and gradient covariances; input: inputs only; none: plain truncated SVD.",
    )
    union: Literal["auto", "thresholds"] = Field(
        default="auto",
        description="auto: the smallest subspaces that lose nearly nothing of the weighted energy; thresholds: the "
        "union of weight, input and gradient directions that hold the three energies below.",
    )
    weight_energy: Energy = Field(default=0.95, description="α: energy of W that its singular vectors must hold.")
    input_energy: Energy = Field(default=0.99, description="β: energy of C_x that its eigenvectors must hold.")
    gradient_energy: Energy = Field(default=0.99, description="γ: energy of C_g that its eigenvectors must hold.")

    allocation: Literal["auto", "measured", "global", "uniform"] = Field(
        default="auto",
        description="measured: ranks where they lower the loss most, by what each direction of a layer was measured to "
        "carry of it; global: by the error that the covariances predict; uniform: one fraction everywhere; auto: "
        "measured for language models, global for classifiers.",
    )
    rank_multiple: int = Field(
        default=8, ge=1, le=256, description="Ranks are multiples of this; matrix units are fastest at 8 or 64."
    )

    core_basis: Literal["whitened", "orthonormal"] = Field(
        default="whitened", description="Coordinates in which the cores are trained."
    )
    trained: Literal["core", "core+norms", "factors"] = Field(
        default="core",
        description="What is trained besides the task head: the cores; with norms and biases; all factors.",
    )
    epochs: float = Field(default=2, gt=0, le=1000, description="Passes over the training rows when finetuning cores.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Rows per training step.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak rate of the cores and the task head.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: slower, less memory.")
    dtype: Annotated[Literal["float32", "bfloat16"], BeforeValidator(_not_half)] = Field(
        default="float32",
        description="Of the weights and of the computation; covariances and cores stay in float32 or better.",
    )


class CompressionConfig(Hyperparameters):
    """All settings of one compression; `budgets` is the one most people change."""

    task: TaskName = "text-classification"
    budgets: Budgets = (0.5,)
    budget_scope: Literal["compressible", "model"] = Field(
        default="compressible", description="What a budget is a fraction of: the linear layers, or the whole model."
    )
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="auto: a GPU if there is one.")
    max_covariance_bytes: int | None = Field(
        default=None, ge=1, description="Bound on the covariances held at a time; smaller means more passes."
    )
    max_shard_size: str = Field(default="5GB", description="A checkpoint above this is written as several files.")

    @property
    def adapter_epochs(self) -> float:
        """Epochs before the calibration."""
        share = self.adapter_share
        if share == "auto":
            task = TASKS[self.task]
            if not task.is_classification:
                share = 1 - REPAIR_SHARE * (1 - min(self.budgets))
            else:
                share = IMAGE_ADAPTER_SHARE if task.reads_images else 0.0
        return self.epochs * share

    @property
    def principal_adapters(self) -> bool:
        """Whether adapters start as the leading directions of the weights."""
        return self.adapter_start == "principal" or (
            self.adapter_start == "auto" and TASKS[self.task].is_classification
        )

    @property
    def repairs(self) -> bool:
        """Whether cores learn from the dense model, which was tuned before."""
        return self.adapter_epochs > 0

    @property
    def draws_labels(self) -> bool:
        """Whether it is calibrated at labels drawn from the model's own answers."""
        return self.fisher == "sampled" or (self.fisher == "auto" and not TASKS[self.task].is_classification)

    @property
    def measures(self) -> bool:
        """Whether ranks go by what directions were measured to carry of the loss."""
        return self.allocation == "measured" or (self.allocation == "auto" and not TASKS[self.task].is_classification)

    @property
    def needs_whole_covariances(self) -> bool:
        """Whether what a layer reads and its gradients are to be known beyond what the weight makes of them."""
        return self.union == "thresholds"

    @property
    def core_epochs(self) -> float:
        """Epochs of each compressed model."""
        return self.epochs - self.adapter_epochs
