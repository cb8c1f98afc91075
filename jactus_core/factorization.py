"""Step 3, project: the best low-rank layer inside the union, in closed form.

Minimise ‖C_g^½ (W − out_basis · Z · in_basisᵀ) C_x^½‖²_F over rank(Z) ≤ r. With C_g = L_g L_gᵀ, C_x = L_x L_xᵀ,
QR L_gᵀ out_basis = Q_a R_a, QR L_xᵀ in_basis = Q_b R_b and the SVD K = Q_aᵀ (L_gᵀ W L_x) Q_b = U S Vᵀ,

    Z = R_a⁻¹ U_r S_r V_rᵀ R_b⁻ᵀ        loss(r) = ‖L_gᵀ W L_x‖² − ‖K‖² + Σ_{i>r} S_i²

so one decomposition answers every rank at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from jactus_core.subspaces import leading_eigenvectors, leading_singular_vectors, orthonormal_union

logger = logging.getLogger(__name__)

FLOOR_GROWTH = 10.0
SMALLEST_SCALE = 1e-12
"""Stands in for tr(C)/d when a covariance is zero, as for a layer that no gradient reaches."""


@dataclass(frozen=True)
class Factorization:
    """W ≈ up[:, :r] · diag(singular[:r]) · down[:r] for any r; float32 factors, float64 singular values."""

    up: Tensor  # (m, k) whitened output directions, out_basis R_a⁻¹ U
    singular: Tensor  # (k,) descending
    down: Tensor  # (k, n) whitened input directions, Vᵀ R_b⁻ᵀ in_basisᵀ
    outside: float  # weighted energy of W that the union cannot express
    out_dimensions: int  # k_L
    in_dimensions: int  # k_R

    @property
    def rank(self) -> int:
        return len(self.singular)

    def loss(self, rank: int) -> float:
        """Weighted squared error of the best approximation of the given rank inside the union."""
        return self.outside + float(self.singular[rank:].square().sum())


@dataclass(frozen=True)
class Side:
    """One side of a layer, input or output: its metric and the directions the union must hold."""

    root: Tensor  # (d, d) lower Cholesky factor of the covariance
    leading: Tensor  # (d, k) leading eigenvectors of the covariance

    @classmethod
    def of(cls, covariance: Tensor, energy: float, floor: float = 1e-4) -> Side:
        """From a (d, d) covariance; `energy` is β or γ, `floor` the Tikhonov floor relative to trace / d.

        Pass the identity with energy 1 for a side without weighting.
        """
        return cls(covariance_root(covariance, floor), leading_eigenvectors(covariance, energy))

    def whitened(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Q (d, k) and R (k, k) of Lᵀ · basis; a basis of the whole space must be the identity, so R is Lᵀ itself."""
        if basis.shape[0] == basis.shape[1]:
            return basis, self.root.T
        return torch.linalg.qr(self.root.T @ basis)


def factorize(weight: Tensor, inputs: Side, outputs: Side, weight_energy: float) -> Factorization:
    """Decompose `weight` (m, n) between C_x on the `inputs` and C_g on the `outputs`; `weight_energy` is α."""
    weight = weight.double()
    left, right = leading_singular_vectors(weight, weight_energy)
    out_basis = orthonormal_union(left, outputs.leading)
    in_basis = orthonormal_union(right, inputs.leading)
    q_a, r_a = outputs.whitened(out_basis)
    q_b, r_b = inputs.whitened(in_basis)
    weighted = outputs.root.T @ weight @ inputs.root  # (m, n)
    inside = q_a.T @ weighted @ q_b  # K (k_L, k_R)
    u, singular, vt = torch.linalg.svd(inside, full_matrices=False)
    up = out_basis @ torch.linalg.solve_triangular(r_a, u, upper=True)
    down = torch.linalg.solve_triangular(r_b, vt.T, upper=True).T @ in_basis.T
    outside = max(float(weighted.square().sum() - inside.square().sum()), 0.0)
    return Factorization(up.float(), singular, down.float(), outside, out_basis.shape[1], in_basis.shape[1])


def covariance_root(covariance: Tensor, floor: float) -> Tensor:
    """Lower Cholesky factor (d, d) of C + floor · tr(C)/d · I in float64.

    A factorization that still fails raises the floor tenfold and says so in the log.
    """
    covariance = covariance.double()
    scale = max(float(covariance.diagonal().mean()), SMALLEST_SCALE)
    identity = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    while True:
        root, info = torch.linalg.cholesky_ex(covariance + floor * scale * identity)
        if int(info) == 0:
            return root
        floor *= FLOOR_GROWTH
        logger.warning("a covariance of size %d is not positive definite; floor raised to %g", len(covariance), floor)
