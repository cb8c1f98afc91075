from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from jactus_core.subspaces import energy_rank, leading_eigenvectors, leading_singular_vectors, orthonormal_union


def orthonormal(size: int, rank: int, seed: int) -> Tensor:
    matrix = torch.randn(size, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix)[0]


@pytest.mark.parametrize(
    ("energies", "fraction", "rank"),
    [([4.0, 3, 2, 1], 0.4, 1), ([4.0, 3, 2, 1], 0.41, 2), ([4.0, 3, 2, 1], 1.0, 4), ([0.0, 0], 0.9, 1)],
)
def test_energy_rank_is_the_smallest_that_holds_the_fraction(energies: list[float], fraction: float, rank: int) -> None:
    assert energy_rank(torch.tensor(energies), fraction) == rank


def test_leading_vectors_equal_numpy() -> None:
    matrix = np.random.default_rng(0).normal(size=(12, 7))
    left, right = leading_singular_vectors(torch.from_numpy(matrix), 0.8)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.8)) + 1

    assert left.shape == (12, rank)
    np.testing.assert_allclose(left @ left.T, u[:, :rank] @ u[:, :rank].T, atol=1e-5)
    np.testing.assert_allclose(right @ right.T, vt[:rank].T @ vt[:rank], atol=1e-5)

    covariance = matrix.T @ matrix
    leading = leading_eigenvectors(torch.from_numpy(covariance), 0.8)
    np.testing.assert_allclose(leading @ leading.T, vt[:rank].T @ vt[:rank], atol=1e-5)


def test_the_union_is_orthonormal_and_spans_both() -> None:
    first, second = orthonormal(30, 8, 1), orthonormal(30, 5, 2)
    union = orthonormal_union(first, second)

    assert union.shape == (30, 13)
    torch.testing.assert_close(union.T @ union, torch.eye(13, dtype=torch.float64))
    for basis in (first, second):
        torch.testing.assert_close(union @ (union.T @ basis), basis)


def test_directions_that_both_hold_are_counted_once() -> None:
    first = orthonormal(30, 8, 1)
    second = torch.cat([first[:, :3], orthonormal_union(first, orthonormal(30, 2, 2))[:, 8:]], dim=1)

    assert orthonormal_union(first, second).shape == (30, 10)
    assert orthonormal_union(first, first @ orthonormal(8, 8, 3)).shape == (30, 8)


@pytest.mark.parametrize("ranks", [(20, 15), (30, 4), (5, 30)])
def test_a_union_that_fills_the_space_is_the_identity(ranks: tuple[int, int]) -> None:
    union = orthonormal_union(orthonormal(30, ranks[0], 1), orthonormal(30, ranks[1], 2))

    assert torch.equal(union, torch.eye(30, dtype=torch.float64))
