"""The closed form against weighted truncated SVDs in SciPy, random perturbations and the weighted error itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from jactus_core.factorization import (
    SMALLEST_SCALE,
    UNION_TOLERANCE,
    Bases,
    Factorization,
    Metric,
    factorize,
    interpolative,
    singular_triplets,
    union_bases,
)
from jactus_core.subspaces import leading_eigenvectors, leading_singular_vectors

M, N = 9, 7
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Problem:
    """A weight (m, n) with C_x (n, n) and C_g (m, m), and a subspace (m, 7), (n, 5) that holds none of them whole."""

    weight: Array
    inputs: Array
    gradients: Array
    out: Array
    into: Array

    @classmethod
    def random(cls, m: int = M, n: int = N, seed: int = 3) -> Problem:
        generator = np.random.default_rng(seed)
        x, g = generator.normal(size=(n, n)), generator.normal(size=(m, m))
        bases = [np.linalg.qr(generator.normal(size=(size, max(size - 2, 1))))[0] for size in (m, n)]
        return cls(generator.normal(size=(m, n)), x @ x.T, g @ g.T, bases[0], bases[1])

    def solve(self, within: bool = False, floor: float = 1e-14) -> Factorization:
        bases = Bases(torch.from_numpy(self.out), torch.from_numpy(self.into)) if within else None
        inputs, outputs = (Metric.of(torch.from_numpy(c), floor) for c in (self.inputs, self.gradients))
        return factorize(torch.from_numpy(self.weight), inputs, outputs, bases)

    def error(self, other: Array) -> float:
        difference = self.weight - other
        return float(np.trace(self.gradients @ difference @ self.inputs @ difference.T))


def approximation(factors: Factorization, rank: int) -> Array:
    up, down = factors.up[:, :rank].double(), factors.down[:rank].double()
    return np.asarray(up @ torch.diag(factors.singular[:rank]) @ down)


@pytest.fixture
def problem() -> Problem:
    return Problem.random()


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(("m", "n"), [(9, 7), (7, 9), (8, 8), (30, 6)])
def test_the_reported_loss_is_the_weighted_error_at_every_rank(within: bool, m: int, n: int) -> None:
    problem = Problem.random(m, n)
    factors = problem.solve(within)

    assert factors.rank >= 3
    for rank in range(factors.rank + 1):
        direct = problem.error(approximation(factors, rank))
        assert factors.loss(rank) == pytest.approx(direct, rel=1e-4, abs=1e-5 * problem.error(np.zeros((m, n))))
    assert factors.loss(0) == pytest.approx(problem.error(np.zeros((m, n))))


def test_without_bases_it_is_the_weighted_truncated_svd(problem: Problem) -> None:
    root_g, root_x = (np.real(sqrtm(c)) for c in (problem.gradients, problem.inputs))
    u, s, vt = np.linalg.svd(root_g @ problem.weight @ root_x)
    factors = problem.solve()

    np.testing.assert_allclose(factors.singular, s, rtol=1e-6)
    for rank in range(1, factors.rank + 1):
        direct = np.linalg.solve(root_g, u[:, :rank] * s[:rank] @ vt[:rank]) @ np.linalg.inv(root_x)
        np.testing.assert_allclose(approximation(factors, rank), direct, atol=1e-4 * np.abs(direct).max())
        assert factors.loss(rank) == pytest.approx(np.square(s[rank:]).sum(), rel=1e-6)


def test_inside_bases_it_is_the_truncated_svd_of_the_projected_problem(problem: Problem) -> None:
    root_g, root_x = (np.real(sqrtm(c)) for c in (problem.gradients, problem.inputs))
    onto_out, onto_in = (a @ np.linalg.pinv(a) for a in (root_g @ problem.out, root_x @ problem.into))
    whole = root_g @ problem.weight @ root_x
    u, s, vt = np.linalg.svd(onto_out @ whole @ onto_in)
    factors = problem.solve(within=True)

    np.testing.assert_allclose(factors.singular, s[: len(factors.singular)], rtol=1e-6)
    for rank in range(1, factors.rank + 1):
        best = u[:, :rank] * s[:rank] @ vt[:rank]
        assert factors.loss(rank) == pytest.approx(np.square(whole - best).sum(), rel=1e-6)
        found = root_g @ approximation(factors, rank) @ root_x
        np.testing.assert_allclose(found, best, atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_perturbation_of_the_factors_does_better(problem: Problem, within: bool, rank: int) -> None:
    factors = problem.solve(within)
    generator = np.random.default_rng(rank)
    up = np.asarray(factors.up[:, :rank].double()) * np.sqrt(factors.singular[:rank].numpy())
    down = (np.asarray(factors.down[:rank].double()).T * np.sqrt(factors.singular[:rank].numpy())).T
    out, into = (problem.out, problem.into) if within else (np.eye(M), np.eye(N))
    best = problem.error(up @ down)

    for size in np.repeat([1e-3, 1e-2, 0.1, 1.0], 100):
        left = up + size * np.abs(up).max() * out @ generator.normal(size=(out.shape[1], rank))
        right = down + size * np.abs(down).max() * generator.normal(size=(rank, into.shape[1])) @ into.T
        assert problem.error(left @ right) >= best * (1 - 1e-6)


def test_the_factors_stay_inside_the_bases(problem: Problem) -> None:
    factors = problem.solve(within=True)

    for columns, basis in ((factors.up.double().numpy(), problem.out), (factors.down.double().numpy().T, problem.into)):
        np.testing.assert_allclose(basis @ (basis.T @ columns), columns, atol=1e-5 * np.abs(columns).max())
    assert (factors.out_dimensions, factors.in_dimensions) == (M - 2, N - 2)


def test_bases_of_the_whole_space_change_nothing(problem: Problem) -> None:
    whole = Problem(problem.weight, problem.inputs, problem.gradients, np.eye(M), np.eye(N))
    free, confined = whole.solve(), whole.solve(within=True)

    torch.testing.assert_close(free.singular, confined.singular)
    np.testing.assert_allclose(approximation(free, 3), approximation(confined, 3), atol=1e-5)
    assert confined.outside == pytest.approx(0, abs=1e-9 * free.loss(0))


def test_without_weighting_it_is_the_truncated_svd(problem: Problem) -> None:
    plain = Problem(problem.weight, np.eye(N), np.eye(M), problem.out, problem.into)
    factors = plain.solve(floor=0)
    u, s, vt = np.linalg.svd(problem.weight, full_matrices=False)

    np.testing.assert_allclose(factors.singular, s, rtol=1e-6)
    for rank in (1, 2, 3):
        np.testing.assert_allclose(approximation(factors, rank), u[:, :rank] * s[:rank] @ vt[:rank], atol=1e-5)


@pytest.mark.parametrize(("m", "n"), [(9, 7), (12, 12), (40, 6), (1, 5), (5, 1), (2, 2)])
@pytest.mark.parametrize("within", [False, True])
def test_there_are_as_many_factors_as_singular_values(m: int, n: int, within: bool) -> None:
    factors = Problem.random(m, n).solve(within)

    assert factors.rank == factors.up.shape[1] == factors.down.shape[0] == len(factors.singular)
    assert len(factors.singular) == (max(min(m, n) - 2, 1) if within else min(m, n))


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_subspaces_lose_no_more_than_the_tolerance(decay: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scales = np.exp(-decay * np.arange(12) / 3)
    weight = generator.normal(size=(15, 12)) * scales
    identity = [Metric.identity(size) for size in (12, 15)]
    factors = factorize(torch.from_numpy(weight), identity[0], identity[1])
    energy = np.square(np.linalg.svd(weight, compute_uv=False))

    smallest = next(k for k in range(1, 13) if energy[k:].sum() <= UNION_TOLERANCE * energy.sum())

    assert factors.out_dimensions == factors.in_dimensions == smallest
    assert factors.outside == 0


def test_union_bases_hold_the_energies_of_weight_and_covariances(problem: Problem) -> None:
    weight, inputs, gradients = (torch.from_numpy(a) for a in (problem.weight, problem.inputs, problem.gradients))
    bases = union_bases(weight, inputs, gradients, (0.5, 0.6, 0.7))
    left, right = leading_singular_vectors(weight, 0.5)

    for basis, parts in (
        (bases.out, (left, leading_eigenvectors(gradients, 0.7))),
        (bases.into, (right, leading_eigenvectors(inputs, 0.6))),
    ):
        assert basis.shape[1] == np.linalg.matrix_rank(torch.cat(parts, 1).numpy()) < len(basis)
        for part in parts:
            torch.testing.assert_close(basis @ (basis.T @ part), part, rtol=0, atol=1e-5)


MATRICES: dict[str, Callable[[np.random.Generator], Array]] = {
    "tall": lambda g: g.normal(size=(20, 6)),
    "wide": lambda g: g.normal(size=(6, 20)),
    "square": lambda g: g.normal(size=(8, 8)),
    "rank-deficient tall": lambda g: g.normal(size=(20, 3)) @ g.normal(size=(3, 10)),
    "rank-deficient wide": lambda g: g.normal(size=(10, 3)) @ g.normal(size=(3, 20)),
    "small": lambda g: 1e-7 * g.normal(size=(7, 5)),
    "zero": lambda g: np.zeros((5, 7)),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_singular_triplets_equal_the_svd_of_numpy(kind: str) -> None:
    matrix = MATRICES[kind](np.random.default_rng(5))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)

    left, singular, right = singular_triplets(torch.from_numpy(matrix))
    count = min(matrix.shape)

    assert (left.shape, right.shape) == ((len(matrix), count), (matrix.shape[1], count))
    np.testing.assert_allclose(singular, s, rtol=1e-6, atol=1e-7 * s[0])  # squared and rooted: half the digits remain
    found = np.asarray(left @ torch.diag(singular[:count]) @ right.T)
    np.testing.assert_allclose(found, u[:, :count] * s[:count] @ vt[:count], atol=1e-7 * s[0])
    for vectors, exact in ((left, u[:, :count]), (right, vt[:count].T)):
        real = s[:count] > 1e-6 * s[0]
        cosines = np.abs((vectors.numpy() * exact).sum(0))
        np.testing.assert_allclose(cosines[real], 1, rtol=1e-6)
        assert torch.isfinite(vectors).all()


def test_a_layer_without_gradient_still_factorizes(problem: Problem) -> None:
    factors = Problem(problem.weight, problem.inputs, np.zeros((M, M)), problem.out, problem.into).solve()

    assert torch.isfinite(factors.up).all()
    assert torch.isfinite(factors.down).all()
    assert factors.loss(0) < 1e-9
    u, s, vt = np.linalg.svd(problem.weight @ np.linalg.cholesky(problem.inputs))
    direct = u[:, :3] * s[:3] @ vt[:3] @ np.linalg.inv(np.linalg.cholesky(problem.inputs))
    np.testing.assert_allclose(approximation(factors, 3), direct, atol=1e-4)  # the inputs alone decide


def test_a_zero_weight_factorizes_to_zero(problem: Problem) -> None:
    factors = Problem(np.zeros((M, N)), problem.inputs, problem.gradients, problem.out, problem.into).solve()

    assert factors.loss(0) == 0
    assert not approximation(factors, factors.rank).any()
    assert torch.isfinite(factors.up).all()
    assert torch.isfinite(factors.down).all()


def test_the_scale_of_the_gradients_changes_losses_but_not_the_layer(problem: Problem) -> None:
    tiny = Problem(problem.weight, problem.inputs, problem.gradients * 1e-12, problem.out, problem.into)
    one, other = problem.solve(within=True), tiny.solve(within=True)

    np.testing.assert_allclose(approximation(one, 3), approximation(other, 3), atol=1e-4)
    assert other.loss(3) == pytest.approx(one.loss(3) * 1e-12, rel=1e-4)


def test_a_root_is_that_of_the_covariance_and_its_floor(problem: Problem) -> None:
    root = Metric.of(torch.from_numpy(problem.inputs), floor=0.1)

    lifted = problem.inputs + 0.1 * np.trace(problem.inputs) / N * np.eye(N)
    np.testing.assert_allclose(root.lower @ root.lower.T, lifted, rtol=1e-12, atol=1e-12 * np.abs(lifted).max())
    assert not root.lower.triu(1).any()
    assert root.floor == 0.1


def test_an_indefinite_covariance_raises_the_floor_and_records_it(caplog: pytest.LogCaptureFixture) -> None:
    values = np.array([1.0, 1.0, -1e-3])
    with caplog.at_level(logging.WARNING):
        root = Metric.of(torch.diag(torch.from_numpy(values)), floor=1e-6)
        lower = root.lower

    scale = values.mean()
    enough = next(floor for floor in (1e-6 * 10.0**k for k in range(9)) if values.min() + floor * scale > 0)
    assert root.floor == pytest.approx(enough)
    np.testing.assert_allclose(lower @ lower.T, np.diag(values + enough * scale), atol=1e-12)
    assert f"floor raised to {enough:g}" in caplog.text


def test_a_zero_covariance_has_a_root_of_its_own() -> None:
    root = Metric.of(torch.zeros(3, 3), floor=1e-4)

    expected: Tensor = np.sqrt(1e-4 * SMALLEST_SCALE) * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(root.lower, expected)
    assert root.floor == 1e-4


@pytest.mark.parametrize(("rank", "n"), [(1, 2), (3, 10), (9, 10), (40, 100), (64, 256)])
@pytest.mark.parametrize("kind", ["random", "graded", "massive", "deficient", "zero"])
def test_the_interpolative_form_makes_every_column_of_a_few(kind: str, rank: int, n: int) -> None:
    matrix = np.random.default_rng(7).normal(size=(rank, n))
    if kind == "graded":
        matrix *= np.geomspace(1, 1e-5, rank)[:, None]
    if kind == "massive":
        matrix[:, n // 2] *= 1e4
    if kind == "deficient":
        matrix[rank // 2 :] = 0
    if kind == "zero":
        matrix[:] = 0
    down = torch.from_numpy(matrix)

    order, others = interpolative(down)

    assert sorted(order.tolist()) == list(range(n))
    assert others.shape == (rank, n - rank)
    assert float(others.abs().max()) < 10
    ordered = matrix[:, order]
    expected = ordered[:, :rank] @ np.hstack([np.eye(rank), others.numpy()])
    np.testing.assert_allclose(ordered, expected, atol=1e-9 * max(np.abs(matrix).max(), 1))
