"""Step 3, project: the best low-rank layer in the weighted norm, in closed form.

Minimise ‖C_g^½ (W − out_basis · Z · in_basisᵀ) C_x^½‖²_F over rank(Z) ≤ r. With C_g = L_g L_gᵀ, C_x = L_x L_xᵀ,
QR L_gᵀ out_basis = Q_a R_a, QR L_xᵀ in_basis = Q_b R_b and the SVD K = Q_aᵀ (L_gᵀ W L_x) Q_b = U S Vᵀ,

    Z = R_a⁻¹ U_r S_r V_rᵀ R_b⁻ᵀ        loss(r) = ‖L_gᵀ W L_x‖² − ‖K‖² + Σ_{i>r} S_i²

so one decomposition answers every rank at once. Without a union the bases are identities, K = L_gᵀ W L_x, and by
Eckart and Young the smallest subspaces that lose no more than a share ε of the weighted energy are those of the first
k directions, Σ_{i>k} S_i² ≤ ε ‖K‖². Then for m ≤ n (else for Wᵀ) the small eigenproblem

    L_gᵀ (W C_x Wᵀ) L_g = U S² Uᵀ        up = L_g⁻ᵀ U        down = S⁻¹ Uᵀ L_gᵀ W

has it all, and of the larger covariance nothing is needed but what W makes of it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from jactus_core.errors import NonFiniteLoss
from jactus_core.subspaces import energy_rank, exact, leading_eigenvectors, leading_singular_vectors, orthonormal_union

logger = logging.getLogger(__name__)

FLOOR_GROWTH = 10.0
SMALLEST_FLOOR = 1e-12
SMALLEST_SCALE = 1e-12
"""Stands in for tr(C)/d when a covariance is zero, as for a layer that no gradient reaches."""
SMALLEST_SINGULAR = 1e-9
"""Singular values are kept above this share of the largest when they are divided by."""
UNION_TOLERANCE = 1e-3
"""ε: the share of the weighted energy that the smallest subspaces of an unrestricted layer may lose."""


@dataclass(frozen=True)
class Factorization:
    """W ≈ up[:, :r] · diag(singular[:r]) · down[:r] for any r up to `rank`; factors float32, singular float64."""

    up: Tensor  # (m, rank) whitened output directions, out_basis R_a⁻¹ U
    singular: Tensor  # (min(k_L, k_R),) descending, past `rank` too
    down: Tensor  # (rank, n) whitened input directions, Vᵀ R_b⁻ᵀ in_basisᵀ
    outside: float  # weighted energy of W that the union cannot express
    out_dimensions: int  # k_L
    in_dimensions: int  # k_R

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return self.up.shape[1]

    def loss(self, rank: int) -> float:
        """Weighted squared error of the best approximation of the given rank."""
        return self.outside + float(self.singular[rank:].square().sum())


def factor_size(m: int, n: int) -> int:
    """Entries of all directions of a (m, n) layer, up and down."""
    return min(m, n) * (m + n)


@dataclass
class Metric:
    """The norm of one side of a layer, input or output."""

    covariance: Tensor  # (d, d) float64, with the floor on its diagonal
    floor: float  # Tikhonov floor relative to trace / d; grows when the Cholesky factorization fails
    scale: float  # trace / d without the floor

    @classmethod
    def of(cls, covariance: Tensor, floor: float) -> Metric:
        """From a plain covariance. Raises NonFiniteLoss when it is not finite."""
        scale = float(covariance.diagonal().mean())
        if not math.isfinite(scale):
            raise NonFiniteLoss("A covariance holds values that are not finite.")
        scale = max(scale, SMALLEST_SCALE)
        covariance = covariance.to(torch.float64, copy=True)
        covariance.diagonal().add_(floor * scale)
        return cls(covariance, floor, scale)

    @classmethod
    def identity(cls, size: int, device: torch.device | str = "cpu") -> Metric:
        """The plain norm."""
        return cls(torch.eye(size, dtype=torch.float64, device=device), 0.0, 1.0)

    @cached_property
    def lower(self) -> Tensor:
        """Cholesky factor L (d, d). One that fails raises the floor tenfold and says so in the log and in `floor`."""
        while True:
            lower, info = torch.linalg.cholesky_ex(self.covariance)
            if int(info) == 0:
                return lower
            raised = max(self.floor, SMALLEST_FLOOR) * FLOOR_GROWTH
            self.covariance.diagonal().add_((raised - self.floor) * self.scale)
            self.floor = raised
            size = len(self.covariance)
            logger.warning("a covariance of size %d is not positive definite; floor raised to %g", size, raised)

    def through(self, weight: Tensor) -> Tensor:
        """What a weight (k, d) makes of the covariance, W C Wᵀ (k, k)."""
        return weight @ self.covariance @ weight.T

    def whitened(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Q (d, k) and R (k, k) of Lᵀ · basis; a basis of the whole space must be the identity, so R is Lᵀ itself."""
        if basis.shape[0] == basis.shape[1]:
            return basis, self.lower.T
        return torch.linalg.qr(self.lower.T @ basis)


@dataclass(frozen=True)
class Product:
    """The norm of a layer's wider side, of which nothing is needed but what the weight makes of it."""

    covariance: Tensor  # (k, k) float64 W C Wᵀ, with the floor on C's diagonal
    floor: float  # relative to trace / d of C

    @classmethod
    def of(cls, covariance: Tensor, identity: Tensor, floor: float, scale: float) -> Product:
        """From W C Wᵀ without the floor, W Wᵀ (k, k), and C's trace / d."""
        return cls(covariance + floor * max(scale, SMALLEST_SCALE) * identity, floor)

    def through(self, weight: Tensor) -> Tensor:
        """As Metric's, of the one weight that this was made with."""
        return self.covariance


@dataclass(frozen=True)
class Bases:
    """The subspaces a layer is confined to, and how many directions each has."""

    out: Tensor  # (m, k_L) orthonormal
    into: Tensor  # (n, k_R) orthonormal


def union_bases(
    weight: Tensor,
    input_covariance: Tensor,
    gradient_covariance: Tensor,
    energies: tuple[float, float, float],
) -> Bases:
    """orth[U_w, U_g] and orth[V_w, V_x] of `weight` (m, n) at the energies α of W, β of C_x and γ of C_g."""
    alpha, beta, gamma = energies
    left, right = leading_singular_vectors(weight, alpha)
    return Bases(
        orthonormal_union(left, leading_eigenvectors(gradient_covariance, gamma)),
        orthonormal_union(right, leading_eigenvectors(input_covariance, beta)),
    )


def factorize(
    weight: Tensor, inputs: Metric | Product, outputs: Metric | Product, bases: Bases | None = None
) -> Factorization:
    """Decompose `weight` (m, n) between the metrics of what it reads and what it writes, inside `bases` if given.

    Without bases the wider side's may be a Product.
    """
    weight = weight.double()
    if bases is None:
        up, singular, down = _weighted_triplets(weight, inputs, outputs)
        needed = energy_rank(singular.square(), 1 - UNION_TOLERANCE)
        return Factorization(up.float(), singular, down.float(), 0.0, needed, needed)
    assert isinstance(inputs, Metric)
    assert isinstance(outputs, Metric)
    q_a, r_a = outputs.whitened(bases.out)
    q_b, r_b = inputs.whitened(bases.into)
    weighted = outputs.lower.T @ weight @ inputs.lower  # (m, n)
    inside = q_a.T @ weighted @ q_b  # K (k_L, k_R)
    u, singular, v = singular_triplets(inside)
    up = bases.out @ torch.linalg.solve_triangular(r_a, u, upper=True)
    down = torch.linalg.solve_triangular(r_b, v, upper=True).T @ bases.into.T
    outside = max(float(weighted.square().sum() - inside.square().sum()), 0.0)
    return Factorization(up.float(), singular, down.float(), outside, bases.out.shape[1], bases.into.shape[1])


def _weighted_triplets(
    weight: Tensor, inputs: Metric | Product, outputs: Metric | Product
) -> tuple[Tensor, Tensor, Tensor]:
    """Whitened directions up (m, k) and down (k, n), and singular values (k,), of a (m, n) matrix; k = min(m, n)."""
    if weight.shape[0] > weight.shape[1]:
        down, singular, up = _weighted_triplets(weight.T, outputs, inputs)
        return up.T, singular, down.T
    assert isinstance(outputs, Metric)
    u, singular = _eigenvectors(outputs.lower.T @ inputs.through(weight) @ outputs.lower)
    scaled = outputs.lower.T @ weight  # (m, n)
    up = torch.linalg.solve_triangular(outputs.lower.T, u, upper=True)
    return up, singular, (u / _divisors(singular)).T @ scaled


def singular_triplets(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left (m, k) and right (n, k) singular vectors of a (m, n) matrix, and its values (k,); k = min(m, n).

    By the symmetric eigenproblem of the smaller Gram matrix in float64: several times faster than an SVD, and the
    projection onto the left (for m > n: right) vectors is exact whatever the rounding in small values.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, singular, left = singular_triplets(matrix.T)
        return left, singular, right
    left, singular = _eigenvectors(matrix @ matrix.T)
    return left, singular, matrix.T @ (left / _divisors(singular))


def _eigenvectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors of a positive semidefinite matrix, largest first, and the square roots of its values."""
    squares, vectors = torch.linalg.eigh(gram)
    return vectors.flip(1), squares.flip(0).clamp(min=0).sqrt()


def _divisors(singular: Tensor) -> Tensor:
    """The singular values, kept away from zero."""
    return singular.clamp(min=float(singular[0]) * SMALLEST_SINGULAR + torch.finfo(torch.float64).tiny)


def interpolative(down: Tensor) -> tuple[Tensor, Tensor]:
    """An order of the columns (n,) and T (r, n - r) with down[:, order] = down[:, order[:r]] · [I, T] for (r, n).

    So r of its columns stand for themselves and T makes the others of them. Pivots are chosen on an orthonormal basis
    of the rows by LU with partial pivoting, as in discrete empirical interpolation (Chaturantabut and Sorensen, 2010),
    which keeps the entries of T small.
    """
    rank, n = down.shape
    basis = torch.linalg.qr(down.T.to(exact(down.device)).double()).Q  # (n, r)
    packed, pivots = torch.linalg.lu_factor(basis)
    order = list(range(n))
    for row, pivot in enumerate(pivots.tolist()):
        order[row], order[pivot - 1] = order[pivot - 1], order[row]
    lower, below = packed[:rank], packed[rank:]
    others = torch.linalg.solve_triangular(lower, below, upper=False, left=False, unitriangular=True)  # (n - r, r)
    return torch.tensor(order, device=down.device), others.T.to(down)
