from __future__ import annotations

import itertools

import numpy as np
import pytest

from jactus_core.allocation import LayerSpectrum, allocate, smallest_budget
from jactus_core.errors import InfeasibleBudget, UnionTooSmall

SHAPES = ((12, 12), (12, 48), (48, 12), (30, 7), (5, 5))


def spectrum(m: int, n: int, seed: int, tokens: int = 100, rank: int | None = None) -> LayerSpectrum:
    generator = np.random.default_rng(seed)
    singular = np.sort(generator.exponential(size=rank or min(m, n)))[::-1]
    return LayerSpectrum(m, n, singular, outside=0.0, tokens=tokens)


def layers(seed: int) -> dict[str, LayerSpectrum]:
    return {f"layer{i}": spectrum(m, n, seed * 10 + i) for i, (m, n) in enumerate(SHAPES)}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("budget", [0.25, 0.4, 0.6, 0.8, 0.95])
def test_the_budget_is_never_exceeded_and_less_than_one_rank_is_left(budget: float, seed: int) -> None:
    spectra = layers(seed)
    found = allocate(spectra, budget)
    kept = sum(
        layer.m * layer.n if (rank := found.ranks[name]) is None else rank * (layer.m + layer.n)
        for name, layer in spectra.items()
    )
    allowed = budget * sum(m * n for m, n in SHAPES)
    next_steps = [
        spectra[name].cost(rank + 1) - spectra[name].cost(rank)
        for name, rank in found.ranks.items()
        if rank is not None
    ]

    assert kept == found.kept_parameters <= allowed
    assert all(step > allowed - kept for step in next_steps)
    assert all(
        rank is None or rank * layer.price < layer.dense_parameters
        for rank, layer in zip(found.ranks.values(), spectra.values(), strict=True)
    )


@pytest.mark.parametrize("seed", range(5))
def test_equal_prices_make_the_greedy_choice_the_best_one(seed: int) -> None:
    spectra = {f"l{i}": spectrum(40, 40, seed * 3 + i, tokens=50 + 100 * i) for i in range(3)}
    ranks_to_spend = 12
    found = allocate(spectra, ranks_to_spend * 80 / 4800)

    best = min(
        sum(layer.loss(rank) for layer, rank in zip(spectra.values(), ranks, strict=True))
        for ranks in itertools.product(range(1, 11), repeat=3)
        if sum(ranks) == ranks_to_spend
    )
    assert found.predicted_loss == pytest.approx(best)


def test_more_tokens_or_a_heavier_spectrum_attract_ranks() -> None:
    base = spectrum(20, 20, 0)
    busy = LayerSpectrum(20, 20, base.singular, 0.0, tokens=base.tokens * 50)
    found = allocate({"quiet": base, "busy": busy}, 0.5)

    assert (found.ranks["busy"] or 20) > (found.ranks["quiet"] or 20)


def test_a_full_budget_keeps_every_layer_dense() -> None:
    found = allocate(layers(0), 1.0)

    assert set(found.ranks.values()) == {None}
    assert found.kept_fraction == 1
    assert found.predicted_loss == 0


def test_a_budget_below_rank_one_everywhere_names_the_smallest_feasible_one() -> None:
    smallest = smallest_budget(SHAPES)
    with pytest.raises(InfeasibleBudget, match=f"{smallest:.4f}"):
        allocate(layers(0), smallest * 0.99)

    assert set(allocate(layers(0), smallest).ranks.values()) == {1}


def test_a_union_too_small_for_the_budget_is_refused_by_layer_name() -> None:
    narrow = {"wide": spectrum(40, 40, 1), "narrow": spectrum(40, 40, 2, rank=3)}
    with pytest.raises(UnionTooSmall, match="'narrow'"):
        allocate(narrow, 0.9)


def test_a_layer_that_no_gradient_reaches_gets_rank_one() -> None:
    dead = LayerSpectrum(20, 20, np.zeros(20), 0.0, tokens=100)
    found = allocate({"dead": dead, "alive": spectrum(20, 20, 1)}, 0.4)

    assert found.ranks["dead"] == 1
