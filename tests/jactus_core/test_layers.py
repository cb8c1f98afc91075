from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from jactus_core.errors import UnsupportedModel
from jactus_core.factorization import Factorization, Side, factorize
from jactus_core.layers import CoreLinear, compressible_layers, fold_cores, install_cores, train_only
from jactus_core.modeling_jactus import LowRankLinear
from tests.tiny import tiny_classifier

HEAD = frozenset({"classifier.weight", "classifier.bias"})
INPUTS = {"input_ids": torch.arange(5, 25).view(2, 10)}


@pytest.fixture
def model() -> Any:
    return tiny_classifier()


def factors_of(layers: dict[str, nn.Linear]) -> dict[str, Factorization]:
    """Under random, anisotropic covariances."""
    generator = torch.Generator().manual_seed(1)

    def side(size: int) -> Side:
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return Side.of(root @ root.T, energy=1.0)

    return {
        name: factorize(layer.weight.detach(), side(layer.in_features), side(layer.out_features), 1.0)
        for name, layer in layers.items()
    }


def prepared(model: Any, rank: int | None) -> dict[str, int | None]:
    layers = compressible_layers(model, HEAD)
    ranks: dict[str, int | None] = dict.fromkeys(layers, rank)
    install_cores(model, factors_of(layers), ranks)
    return ranks


def test_every_linear_layer_of_the_body_is_found_and_the_head_is_not(model: Any) -> None:
    found = compressible_layers(model, HEAD)

    assert len(found) == 2 * 6 + 1
    assert "bert.pooler.dense" in found
    assert "classifier" not in found


def test_a_new_layer_inside_the_body_belongs_to_the_head(model: Any) -> None:
    head = HEAD | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}

    assert "bert.pooler.dense" not in compressible_layers(model, head)


def test_a_weight_that_two_layers_share_is_refused_by_name(model: Any) -> None:
    first, second = (model.bert.encoder.layer[i].attention.self.query for i in range(2))
    second.weight = first.weight
    with pytest.raises(UnsupportedModel, match=r"layer\.0.*layer\.1.*share one weight"):
        compressible_layers(model, HEAD)


def test_cores_of_full_rank_leave_the_logits_as_they_were(model: Any) -> None:
    before = model(**INPUTS).logits
    prepared(model, rank=16)

    torch.testing.assert_close(model(**INPUTS).logits, before, rtol=1e-4, atol=1e-5)


def test_an_untrained_core_beside_a_dense_layer_changes_nothing(model: Any) -> None:
    before = model(**INPUTS).logits
    prepared(model, rank=None)

    torch.testing.assert_close(model(**INPUTS).logits, before)


@pytest.mark.parametrize("rank", [4, None])
def test_folding_trained_cores_changes_no_logit(model: Any, rank: int | None) -> None:
    prepared(model, rank)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, CoreLinear):
                module.core.add_(0.05 * torch.randn(module.core.shape, generator=generator))
    trained = model(**INPUTS).logits

    fold_cores(model)

    assert not any(isinstance(module, CoreLinear) for module in model.modules())
    assert any(isinstance(module, LowRankLinear) for module in model.modules()) is (rank is not None)
    torch.testing.assert_close(model(**INPUTS).logits, trained, rtol=1e-4, atol=1e-5)


def test_only_cores_and_the_head_are_trained(model: Any) -> None:
    ranks = prepared(model, rank=4)
    train_only(model, HEAD | {f"{name}.core" for name in ranks})
    model(**INPUTS, labels=torch.tensor([0, 1])).loss.backward()

    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == HEAD | {f"{name}.core" for name in ranks}
