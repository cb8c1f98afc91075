"""Step 2, union: the directions a layer may use, before any rank is spent.

    out_basis = orth[U_w, U_g] (m, k_L)      in_basis = orth[V_w, V_x] (n, k_R)

U_w, V_w hold the energy α of W; U_g holds γ of C_g; V_x holds β of C_x.
"""

from __future__ import annotations

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-6
"""Length of the residual of a unit vector below which it counts as lying in the union already."""


def energy_rank(energies: Tensor, fraction: float) -> int:
    """Smallest k such that the k largest of the descending `energies` hold `fraction` of their sum; at least 1."""
    cumulative = energies.clamp(min=0).double().cumsum(0)
    if cumulative[-1] <= 0:
        return 1
    reached = cumulative >= fraction * cumulative[-1] * (1 - 1e-12)
    return int(reached.int().argmax()) + 1


def leading_eigenvectors(covariance: Tensor, fraction: float) -> Tensor:
    """Eigenvectors (d, k) of a symmetric (d, d) matrix that hold `fraction` of its trace, largest first."""
    values, vectors = torch.linalg.eigh(covariance.float())  # selects a subspace only: float32 is enough
    return vectors.flip(1)[:, : energy_rank(values.flip(0), fraction)].double()


def leading_singular_vectors(weight: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """(m, k) left and (n, k) right singular vectors of a (m, n) matrix that hold `fraction` of ‖W‖²."""
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    rank = energy_rank(values.square(), fraction)
    return left[:, :rank].double(), right[:rank].T.double()


def orthonormal_union(first: Tensor, second: Tensor) -> Tensor:
    """Orthonormal basis (d, k) of the span of two orthonormal bases (d, k₁) and (d, k₂), k ≤ min(d, k₁ + k₂).

    The identity when the union fills the space; else `first`, followed by what `second` adds to it: the residual of
    `second`, its near-zero directions dropped.
    """
    size, room = first.shape[0], first.shape[0] - first.shape[1]
    residual = _without(second, first)
    values, rotation = torch.linalg.eigh(residual.T @ residual)  # ascending squared lengths
    kept = rotation[:, values > RANK_TOLERANCE**2]
    if kept.shape[1] >= room:
        return torch.eye(size, dtype=first.dtype, device=first.device)
    added, _ = torch.linalg.qr(_without(residual @ kept, first))
    return torch.cat([first, added], dim=1)


def _without(vectors: Tensor, basis: Tensor) -> Tensor:
    """The part of `vectors` orthogonal to `basis`; done twice, as rounding needs."""
    for _ in range(2):
        vectors = vectors - basis @ (basis.T @ vectors)
    return vectors


def exact(device: torch.device) -> torch.device:
    """Where to compute in float64: the CPU instead of Apple's GPUs, which have none."""
    return torch.device("cpu") if device.type == "mps" else device
