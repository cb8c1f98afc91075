"""The one description of a compression: what to keep, how to calibrate, how to finetune."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Weighting = Literal["fisher", "input", "none"]
Energy = Annotated[float, Field(gt=0, le=1)]
Budget = Annotated[float, Field(gt=0, le=1)]


def _descending(budgets: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(budgets)) != len(budgets):
        raise ValueError("budgets must be distinct")
    return tuple(sorted(budgets, reverse=True))


Budgets = Annotated[
    tuple[Budget, ...],
    Field(
        min_length=1,
        max_length=16,
        description="Fractions of the compressible parameters to keep, in (0, 1]. One calibration serves them all.",
    ),
    AfterValidator(_descending),
]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="Seeds the split, the sampling and the finetuning.")]


class Hyperparameters(BaseModel):
    """How to calibrate and how to finetune. Everything has a default; a user may leave them all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_length: int = Field(default=128, ge=8, le=8192, description="Tokens kept of each text.")
    eval_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows held out for evaluation.")

    warmup_samples: int = Field(default=1024, ge=1, description="Training rows used to warm up a new task head.")
    warmup_epochs: int = Field(default=50, ge=1, le=1000, description="Head-only epochs on the frozen body's outputs.")
    calibration_samples: int = Field(default=512, ge=1, description="Training rows used to estimate covariances.")
    weighting: Weighting = Field(
        default="fisher",
        description="fisher: input and gradient covariances; input: inputs only; none: plain truncated SVD.",
    )
    weight_energy: Energy = Field(default=0.95, description="α: energy of W that its singular vectors must hold.")
    input_energy: Energy = Field(default=0.99, description="β: energy of C_x that its eigenvectors must hold.")
    gradient_energy: Energy = Field(default=0.99, description="γ: energy of C_g that its eigenvectors must hold.")
    covariance_floor: float = Field(default=1e-4, gt=0, le=1, description="Tikhonov floor, relative to trace / size.")

    epochs: float = Field(default=2, gt=0, le=1000, description="Passes over the training rows when finetuning cores.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Rows per training step.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak rate of the cores and the task head.")


class CompressionConfig(Hyperparameters):
    """All settings of one compression; `budgets` is the one most people change."""

    budgets: Budgets = (0.5,)
    seed: Seed = 0
