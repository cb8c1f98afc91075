"""Allocation against brute force over every combination of ranks, and against the arithmetic of its promises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pytest

from jactus_core.allocation import (
    Allocation,
    LayerSpectrum,
    allocate,
    cheapest,
    check_budget,
    low_rank_parameters,
    smallest_budget,
)
from jactus_core.errors import InfeasibleBudget, UnionTooSmall

SHAPES = ((12, 12), (12, 48), (48, 12), (30, 7), (5, 5))
WIDE = ((64, 64), (64, 200), (40, 24), (17, 17), (16, 16))


def spectrum(
    m: int, n: int, seed: int, *, tokens: int = 100, available: int | None = None, outside: float = 0.0
) -> LayerSpectrum:
    singular = np.sort(np.random.default_rng(seed).exponential(size=min(m, n)))[::-1]
    return LayerSpectrum(m, n, np.square(singular), outside, tokens, min(m, n) if available is None else available)


def layers(seed: int, shapes: Iterable[tuple[int, int]] = SHAPES) -> dict[str, LayerSpectrum]:
    return {f"layer{i}": spectrum(m, n, seed * 10 + i) for i, (m, n) in enumerate(shapes)}


def convex(m: int, n: int, seed: int, tokens: int) -> LayerSpectrum:
    """Every step, that to the dense layer too, gains less per parameter than the one before."""
    enough = min(m, n)
    bargains = np.sort(np.random.default_rng(seed).exponential(size=enough))[::-1]
    energies = bargains * (m + n - 2 * np.arange(enough) - 1)  # what each step costs, that to the dense layer too
    return LayerSpectrum(m, n, energies, 0.0, tokens, enough)


def price(layer: LayerSpectrum, rank: int | None) -> int:
    return layer.m * layer.n if rank is None else rank * (layer.m + layer.n - rank)


def error(layer: LayerSpectrum, rank: int | None) -> float:
    left = layer.energies[layer.m * layer.n if rank is None else rank :]
    return layer.tokens * (float(left.sum()) + (0 if rank is None else layer.outside))


def choices(layer: LayerSpectrum, multiple: int = 1) -> list[int | None]:
    paying = range(multiple, layer.available + 1, multiple)
    return [*(rank for rank in paying if price(layer, rank) < price(layer, None)), None]


def combinations(spectra: Mapping[str, LayerSpectrum]) -> Iterator[tuple[int, float]]:
    """Parameters and error of every combination of ranks."""
    for ranks in itertools.product(*(choices(layer) for layer in spectra.values())):
        pairs = list(zip(spectra.values(), ranks, strict=True))
        yield sum(price(*pair) for pair in pairs), sum(error(*pair) for pair in pairs)


def dense(spectra: Mapping[str, LayerSpectrum]) -> int:
    return sum(price(layer, None) for layer in spectra.values())


def check_promises(
    spectra: Mapping[str, LayerSpectrum], found: Allocation, budget: float, multiple: int, others: int = 0
) -> int:
    """What the budget leaves over, after what holds for every allocation."""
    kept = sum(price(layer, found.ranks[name]) for name, layer in spectra.items())
    left = budget * (dense(spectra) + others) - others - kept
    assert all(found.ranks[name] in choices(layer, multiple) for name, layer in spectra.items())
    assert found.kept_parameters == kept
    assert found.dense_parameters == dense(spectra)
    assert found.kept_fraction == pytest.approx(kept / dense(spectra))
    assert found.predicted_loss == pytest.approx(
        sum(error(layer, found.ranks[name]) for name, layer in spectra.items())
    )
    assert left >= -1e-6
    return math.floor(left + 1e-6)


def steps(spectra: Mapping[str, LayerSpectrum], found: Allocation, multiple: int) -> list[int]:
    """What the next step of every layer that can still grow costs."""
    costs = []
    for name, layer in spectra.items():
        rank = found.ranks[name]
        if rank is not None:
            ladder = choices(layer, multiple)
            costs.append(price(layer, ladder[ladder.index(rank) + 1]) - price(layer, rank))
    return costs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [0.25, 0.4, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(
    ("shapes", "multiple", "others"), [(SHAPES, 1, 0), (SHAPES, 1, 77), (WIDE, 8, 0), (WIDE, 8, 500)]
)
def test_the_budget_is_never_exceeded_and_less_than_the_cheapest_step_is_left(
    shapes: tuple[tuple[int, int], ...], multiple: int, others: int, budget: float, seed: int
) -> None:
    spectra = layers(seed, shapes)
    if budget < smallest_budget(shapes, others, multiple):
        with pytest.raises(InfeasibleBudget):
            allocate(spectra, budget, other_parameters=others, multiple=multiple)
        return

    found = allocate(spectra, budget, other_parameters=others, multiple=multiple)

    left = check_promises(spectra, found, budget, multiple, others)
    assert all(step > left for step in steps(spectra, found, multiple))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("parameters", [72, 100, 168, 192, 200, 300, 407, 432])
def test_no_other_ranks_do_better_for_a_step_less(seed: int, parameters: int) -> None:
    spectra = {f"l{i}": convex(12, 12, seed * 3 + i, tokens=50 + 100 * i) for i in range(3)}

    found = allocate(spectra, parameters / dense(spectra))

    dearest = 12 + 12 - 3  # from rank one to two
    least = sum(price(layer, 1) for layer in spectra.values())
    best = min(loss for cost, loss in combinations(spectra) if cost <= max(parameters - dearest, least))
    assert found.predicted_loss <= best + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_with_any_prices_no_other_ranks_do_better_where_the_budget_pays_whole_bargains(seed: int) -> None:
    shapes = ((12, 12), (9, 20), (20, 6), (7, 7))
    spectra = {f"l{i}": convex(m, n, seed * 7 + i, tokens=60 + 50 * i) for i, (m, n) in enumerate(shapes)}
    bargains = []
    for layer in spectra.values():
        for low, high in itertools.pairwise(choices(layer)):
            cost = price(layer, high) - price(layer, low)
            bargains.append(((error(layer, low) - error(layer, high)) / cost, cost))
    bargains.sort(reverse=True)
    least = sum(price(layer, 1) for layer in spectra.values())
    everything = list(combinations(spectra))

    for parameters in itertools.accumulate((cost for _, cost in bargains), initial=least):
        found = allocate(spectra, parameters / dense(spectra))
        assert found.kept_parameters == parameters
        assert found.predicted_loss == pytest.approx(min(loss for c, loss in everything if c <= parameters), abs=1e-9)


def test_more_tokens_attract_ranks() -> None:
    base = spectrum(20, 20, 0)
    busy = LayerSpectrum(20, 20, base.energies, 0.0, base.tokens * 50, 20)
    found = allocate({"quiet": base, "busy": busy}, 0.5)

    assert (found.ranks["busy"] or 20) > (found.ranks["quiet"] or 20)


def test_error_outside_the_union_speaks_for_staying_dense() -> None:
    def ranks(outside: float) -> dict[str, int | None]:
        confined = LayerSpectrum(20, 20, np.full(9, 2.0), outside, 100, 9)
        return allocate({"confined": confined, "other": LayerSpectrum(20, 20, np.ones(10), 0.0, 100, 9)}, 0.575).ranks

    assert ranks(outside=0) == {"confined": 9, "other": 5}
    assert ranks(outside=10) == {"confined": None, "other": 1}


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("others", [0, 1000])
def test_a_full_budget_keeps_every_layer_dense(multiple: int, uniform: bool, others: int) -> None:
    found = allocate(layers(0, WIDE), 1.0, multiple=multiple, uniform=uniform, other_parameters=others)

    assert set(found.ranks.values()) == {None}
    assert found.kept_fraction == 1
    assert found.predicted_loss == 0


@pytest.mark.parametrize("uniform", [False, True])
def test_a_full_budget_keeps_a_layer_with_a_small_union_dense_too(uniform: bool) -> None:
    narrow = {"wide": spectrum(40, 40, 1), "narrow": spectrum(40, 40, 2, available=3)}

    assert set(allocate(narrow, 1.0, uniform=uniform).ranks.values()) == {None}


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("multiple", "others"), [(1, 0), (8, 0), (1, 3000)])
def test_uniform_gives_each_layer_the_most_within_its_fraction(
    budget: float, seed: int, multiple: int, others: int
) -> None:
    spectra = layers(seed, ((64, 64), (64, 200), (80, 72)))
    budget_with_others = (budget * dense(spectra) + others) / (dense(spectra) + others)

    found = allocate(spectra, budget_with_others, uniform=True, multiple=multiple, other_parameters=others)

    check_promises(spectra, found, budget_with_others, multiple, others)
    for name, layer in spectra.items():
        affordable = [r for r in choices(layer, multiple) if price(layer, r) <= budget * price(layer, None) + 1e-3]
        assert found.ranks[name] == affordable[-1]


def test_uniform_refuses_a_layer_whose_smallest_rank_is_more_than_its_fraction() -> None:
    spectra = {"large": spectrum(100, 100, 0), "small": spectrum(6, 6, 1)}
    assert smallest_budget([(100, 100), (6, 6)]) < 0.2

    allocate(spectra, 0.2)
    with pytest.raises(InfeasibleBudget, match=r"'small'.*0\.3056"):
        allocate(spectra, 0.2, uniform=True)


def test_a_budget_of_the_whole_model_pays_for_what_no_rank_changes_first() -> None:
    spectra, others = layers(1), 700
    whole = allocate(spectra, 0.75, other_parameters=others)

    parameters = math.floor(0.75 * (dense(spectra) + others)) - others
    assert whole == allocate(spectra, parameters / dense(spectra))
    assert whole.kept_parameters + others <= 0.75 * (dense(spectra) + others)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 9), (2, 2), (5, 5), (12, 12), (30, 7), (768, 3072)])
@pytest.mark.parametrize("multiple", [1, 8])
def test_the_cheapest_layer_is_that_found_by_counting(m: int, n: int, multiple: int) -> None:
    costs = [rank * m + (n - rank) * rank for rank in range(multiple, min(m, n) + 1, multiple)]

    assert cheapest(m, n, multiple) == min([*costs, m * n])
    assert [low_rank_parameters(m, n, rank) for rank in range(multiple, min(m, n) + 1, multiple)] == costs


@pytest.mark.parametrize("shapes", [SHAPES, WIDE, ((6, 6),) * 7, ((5, 5), (2, 2))])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("others", [0, 1, 12345])
def test_the_smallest_budget_is_sharp(shapes: tuple[tuple[int, int], ...], multiple: int, others: int) -> None:
    spectra = layers(0, shapes)
    least = sum(price(layer, choices(layer, multiple)[0]) for layer in spectra.values())
    smallest = smallest_budget(shapes, others, multiple)

    found = allocate(spectra, smallest, other_parameters=others, multiple=multiple)
    assert found.kept_parameters == least
    assert found.ranks == {name: choices(layer, multiple)[0] for name, layer in spectra.items()}
    below = np.nextafter(smallest, 0)
    for refuse in (
        lambda: allocate(spectra, below, other_parameters=others, multiple=multiple),
        lambda: check_budget(below, shapes, others, multiple),
    ):
        with pytest.raises(InfeasibleBudget, match=f"{smallest:.4f}"):
            refuse()


def test_the_budget_that_a_refusal_asks_for_is_enough() -> None:
    for others in range(0, 2000, 137):
        with pytest.raises(InfeasibleBudget) as refused:
            allocate(layers(0), 0.01, other_parameters=others)
        asked = float(refused.value.message.split("ask for ")[1].split(" or more")[0])
        allocate(layers(0), asked, other_parameters=others)


@pytest.mark.parametrize("uniform", [False, True])
def test_a_union_too_small_for_the_budget_is_refused_by_layer_name(uniform: bool) -> None:
    narrow = {"wide": spectrum(40, 40, 1, tokens=10_000), "narrow": spectrum(40, 40, 2, available=3)}
    with pytest.raises(UnionTooSmall, match=r"'narrow'.*rank 3 at most"):
        allocate(narrow, 0.9, uniform=uniform)


def test_a_union_that_is_small_but_enough_is_accepted() -> None:
    quiet = LayerSpectrum(40, 40, np.full(3, 1e-6), 0.0, 100, 3)

    found = allocate({"wide": spectrum(40, 40, 1), "quiet": quiet}, 0.3)

    assert (found.ranks["quiet"] or 40) <= 3


@pytest.mark.parametrize("budget", [0.25, 0.3, 0.5])
def test_a_union_without_one_multiple_is_refused_where_the_dense_layer_is_too_much(budget: float) -> None:
    narrow = {"wide": spectrum(80, 80, 1), "narrow": spectrum(80, 80, 2, available=7)}
    with pytest.raises(UnionTooSmall, match=r"'narrow'.*rank 7 at most"):
        allocate(narrow, budget, multiple=8)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("uniform", [False, True])
def test_no_union_makes_an_allocation_exceed_the_budget(seed: int, multiple: int, uniform: bool) -> None:
    generator = np.random.default_rng(seed)
    shapes = [(int(m), int(n)) for m, n in generator.integers(20, 60, size=(4, 2))]
    spectra = {
        f"l{i}": spectrum(m, n, i, available=int(generator.integers(1, min(m, n) + 1)))
        for i, (m, n) in enumerate(shapes)
    }
    for budget in np.linspace(smallest_budget(shapes, 0, multiple), 1, 9):
        try:
            found = allocate(spectra, float(budget), multiple=multiple, uniform=uniform)
        except (UnionTooSmall, InfeasibleBudget):
            continue
        check_promises(spectra, found, float(budget), multiple)


def test_a_layer_that_no_gradient_reaches_gets_rank_one() -> None:
    dead = LayerSpectrum(20, 20, np.zeros(20), 0.0, 100, 10)
    found = allocate({"dead": dead, "alive": spectrum(20, 20, 1)}, 0.4)

    assert found.ranks["dead"] == 1
