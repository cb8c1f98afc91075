"""What directions carry of the loss, against autograd row by row and against the divergence that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jactus_core.factorization import Factorization
from jactus_core.layers import find_targets, matrix_of
from jactus_core.losses import IGNORED
from jactus_core.measurement import measure
from tests.jactus_core.test_calibration import (
    CLASSIFIED,
    HEAD,
    MODELS,
    Batch,
    negative_log_likelihood,
    points,
    toy,
)
from tests.tiny import tiny_classifier

QUERY = "bert.encoder.layer.0.attention.self.query"


def factors_of(layers: Mapping[str, nn.Module]) -> dict[str, Factorization]:
    """Any directions whose sum is the weight: the plain singular value decomposition's, unevenly scaled."""
    found = {}
    for name, layer in layers.items():
        u, s, v = torch.linalg.svd(matrix_of(layer).detach().double(), full_matrices=False)
        uneven = torch.linspace(0.5, 2, len(s), dtype=torch.float64)
        up, down = (u * uneven).float(), (v.T / uneven).T.float()
        found[name] = Factorization(up, s, down, 0.0, len(s), len(s))
    return found


def by_autograd(
    model: nn.Module, layers: Mapping[str, nn.Module], factors: Mapping[str, Factorization], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Σ a_i² over rows, from the gradient of each row's own loss at the whole weight."""
    total = {name: torch.zeros(len(f.singular), dtype=torch.float64) for name, f in factors.items()}
    weights = [cast(nn.Parameter, layer.weight).requires_grad_() for layer in layers.values()]
    for batch in batches:
        for row in range(len(batch["labels"])):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            inputs = {key: value for key, value in one.items() if key != "labels"}
            loss = negative_log_likelihood(model(**inputs).logits, one["labels"])
            for (name, layer), gradient in zip(layers.items(), torch.autograd.grad(loss, weights), strict=True):
                g = gradient if isinstance(layer, nn.Linear) else gradient.T
                f = factors[name]
                total[name] += ((f.up.T @ g @ f.down.T).diagonal().double() * f.singular).square()
    return total


def tokens_of(batches: Sequence[Batch]) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


@pytest.mark.parametrize(("make", "body", "head", "batches"), MODELS)
def test_what_every_direction_carries_is_what_autograd_says_of_each_row(
    make: Callable[[], PreTrainedModel], body: str, head: frozenset[str], batches: list[Batch]
) -> None:
    model = make()
    layers = find_targets(model, body, head).layers
    factors = factors_of(layers)

    found = measure(model, layers, factors.__getitem__, batches)

    assert found.keys() == layers.keys()
    for name, expected in by_autograd(model, layers, factors, batches).items():
        tokens = sum(len(batch["labels"]) for batch in batches) if "pooler" in name else tokens_of(batches)
        torch.testing.assert_close(
            found[name], expected / tokens, rtol=1e-3, atol=1e-6 * float(expected.max() / tokens), msg=name
        )


def test_half_of_it_is_the_divergence_that_leaving_a_direction_out_leads_to() -> None:
    model = tiny_classifier().double().eval()
    layers = {QUERY: model.get_submodule(QUERY)}
    factors = factors_of(layers)[QUERY]
    batch = {key: value[:1] for key, value in CLASSIFIED[0].items()}
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    answers = model(**inputs).logits.log_softmax(-1)[0].detach()

    expected = torch.zeros(len(factors.singular), dtype=torch.float64)
    for label, answer in enumerate(answers):
        given = batch | {"labels": torch.tensor([label])}
        expected += answer.exp() * tokens_of([batch]) * measure(model, layers, lambda _: factors, [given])[QUERY]

    share, weight = 1e-3, matrix_of(layers[QUERY])
    for index in (0, 3, 7):
        left_out = share * factors.singular[index] * torch.outer(factors.up[:, index], factors.down[index]).double()
        with torch.no_grad():
            weight.sub_(left_out)
            others = model(**inputs).logits.log_softmax(-1)[0]
            weight.add_(left_out)
        divergence = float((answers.exp() * (answers - others)).sum())
        assert divergence == pytest.approx(share**2 * float(expected[index]) / 2, rel=0.02)


Forward = Callable[[Any, Tensor], Tensor]


def toy_energies(forward: Forward) -> Tensor:
    model = toy(forward, "layer")
    return measure(model, model.layers, factors_of(model.layers).__getitem__, [points()])["layer"]


def toy_squares(forward: Forward) -> Tensor:
    model = toy(forward, "layer")
    return by_autograd(model, model.layers, factors_of(model.layers), [points()])["layer"]


def test_a_layer_that_is_called_twice_for_a_row_has_one_change_of_its_loss() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.layer(torch.tanh(m.layer(x)))
        return y

    torch.testing.assert_close(toy_energies(forward), toy_squares(forward) / 12, rtol=1e-4, atol=1e-9)


def test_what_a_model_changes_in_place_was_read_before() -> None:
    def in_place(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.layer(x)
        x += 1
        return y * x

    def apart(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.layer(x)
        return y * (x + 1)

    torch.testing.assert_close(toy_energies(in_place), toy_squares(apart) / 6, rtol=1e-4, atol=1e-9)


def test_a_layer_that_never_fires_is_left_out() -> None:
    model = toy(lambda m, x: m.heard(x), "heard", "silent")

    assert measure(model, model.layers, factors_of(model.layers).__getitem__, [points()]).keys() == {"heard"}


def test_a_layer_without_gradients_carries_nothing() -> None:
    batch = CLASSIFIED[0] | {"labels": torch.full_like(CLASSIFIED[0]["labels"], IGNORED)}
    model = tiny_classifier()
    layers = find_targets(model, "bert", HEAD).layers

    found = measure(model, layers, factors_of(layers).__getitem__, [batch])

    assert all(float(energies.abs().max()) == 0 for energies in found.values())
