"""The closed form against numerical minimisation, NumPy's SVD and its own loss formula."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.optimize import minimize
from torch import Tensor

from jactus_core.factorization import Factorization, Side, covariance_root, factorize
from jactus_core.subspaces import leading_eigenvectors, leading_singular_vectors, orthonormal_union

M, N = 9, 7
Array = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """A weight (m, n) with C_x (n, n) and C_g (m, m)."""
    generator = np.random.default_rng(3)
    x, g = generator.normal(size=(N, N)), generator.normal(size=(M, M))
    weight = generator.normal(size=(M, N))
    return torch.from_numpy(weight), torch.from_numpy(x @ x.T), torch.from_numpy(g @ g.T)


def decompose(weight: Tensor, inputs: Tensor, gradients: Tensor, energy: float) -> Factorization:
    floor = 1e-14
    return factorize(weight, Side.of(inputs, energy, floor), Side.of(gradients, energy, floor), energy)


def approximation(factors: Factorization, rank: int) -> Array:
    up, down = factors.up[:, :rank].double(), factors.down[:rank].double()
    return np.asarray(up @ torch.diag(factors.singular[:rank]) @ down)


def weighted_error(weight: Tensor, other: Array, inputs: Tensor, gradients: Tensor) -> float:
    difference = weight.numpy() - other
    return float(np.trace(gradients.numpy() @ difference @ inputs.numpy() @ difference.T))


@pytest.mark.parametrize("energy", [1.0, 0.85])
def test_the_loss_formula_is_the_weighted_error_at_every_rank(
    problem: tuple[Tensor, Tensor, Tensor], energy: float
) -> None:
    weight, inputs, gradients = problem
    factors = decompose(weight, inputs, gradients, energy)

    for rank in range(factors.rank + 1):
        direct = weighted_error(weight, approximation(factors, rank), inputs, gradients)
        assert factors.loss(rank) == pytest.approx(direct, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_no_numerical_minimisation_inside_the_union_does_better(
    problem: tuple[Tensor, Tensor, Tensor], rank: int
) -> None:
    weight, inputs, gradients = problem
    energy = 0.9
    factors = decompose(weight, inputs, gradients, energy)
    left, right = leading_singular_vectors(weight, energy)
    out_basis = orthonormal_union(left, leading_eigenvectors(gradients, energy)).numpy()
    in_basis = orthonormal_union(right, leading_eigenvectors(inputs, energy)).numpy()
    root_g, root_x = np.real(sqrtm(gradients.numpy())), np.real(sqrtm(inputs.numpy()))
    rows, columns = out_basis.shape[1] * rank, in_basis.shape[1] * rank

    def objective(flat: Array) -> tuple[float, Array]:
        a, b = flat[:rows].reshape(-1, rank), flat[rows:].reshape(rank, -1)
        residual = root_g @ (weight.numpy() - out_basis @ a @ b @ in_basis.T) @ root_x
        slope = -2 * out_basis.T @ root_g @ residual @ root_x @ in_basis
        return float(np.square(residual).sum()), np.concatenate([(slope @ b.T).ravel(), (a.T @ slope).ravel()])

    starts = [np.random.default_rng(seed).normal(size=rows + columns) for seed in range(8)]
    found = min(
        minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000}).fun for start in starts
    )

    assert factors.loss(rank) == pytest.approx(found, rel=1e-3)
    assert factors.loss(rank) <= found * (1 + 1e-6)


def test_without_weighting_it_is_the_truncated_svd(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    weight = problem[0]
    identity = [torch.eye(size, dtype=torch.float64) for size in (N, M)]
    factors = decompose(weight, identity[0], identity[1], energy=1.0)
    u, s, vt = np.linalg.svd(weight.numpy(), full_matrices=False)

    np.testing.assert_allclose(factors.singular, s, rtol=1e-6)
    for rank in (1, 3, 7):
        np.testing.assert_allclose(approximation(factors, rank), u[:, :rank] * s[:rank] @ vt[:rank], atol=1e-5)


def test_a_layer_without_gradient_still_factorizes(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, inputs, _ = problem
    factors = decompose(weight, inputs, torch.zeros(M, M, dtype=torch.float64), energy=1.0)

    assert torch.isfinite(factors.up).all()
    assert torch.isfinite(factors.down).all()
    assert float(factors.singular.max()) < 1e-4
    np.testing.assert_allclose(approximation(factors, factors.rank), weight.numpy(), atol=1e-4)


def test_the_scale_of_the_gradients_changes_losses_but_not_the_layer(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, inputs, gradients = problem
    one, tiny = (decompose(weight, inputs, gradients * scale, energy=0.9) for scale in (1.0, 1e-12))

    np.testing.assert_allclose(approximation(one, 3), approximation(tiny, 3), atol=1e-4)
    assert tiny.loss(3) == pytest.approx(one.loss(3) * 1e-12, rel=1e-4)


def test_an_indefinite_covariance_raises_the_floor_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    broken = torch.diag(torch.tensor([1.0, 1.0, -1e-3]))
    with caplog.at_level(logging.WARNING):
        root = covariance_root(broken, floor=1e-6)

    assert torch.isfinite(root).all()
    assert "floor raised" in caplog.text
