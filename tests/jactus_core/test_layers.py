from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from jactus_core.allocation import low_rank_parameters
from jactus_core.errors import UnsupportedModel
from jactus_core.factorization import Bases, Factorization, Metric, factorize
from jactus_core.layers import (
    AdaptedLinear,
    Basis,
    CoreLinear,
    adapter_names,
    find_targets,
    fold_cores,
    install_adapters,
    install_cores,
    matrix_of,
    merge_adapters,
    train_only,
)
from jactus_core.modeling_jactus import LowRankLinear, matrix_shape
from tests.tiny import tiny_classifier

HEAD = frozenset({"classifier.weight", "classifier.bias"})
INPUTS = {"input_ids": torch.arange(5, 25).view(2, 10)}
BASES: tuple[Basis, Basis] = ("whitened", "orthonormal")
M, N, RANK = 10, 6, 3


@pytest.fixture
def model() -> Any:
    return tiny_classifier()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()


def random_metric(size: int, seed: int) -> Metric:
    """Of a random, anisotropic covariance."""
    draws = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Metric.of(draws @ draws.T, 1e-9)


def factors_of(layer: nn.Module, bases: Bases | None = None) -> Factorization:
    m, n = matrix_shape(layer)
    return factorize(matrix_of(layer), random_metric(n, 1), random_metric(m, 2), bases)


def linear(kind: str, bias: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    layer: Any = Conv1D(M, N) if kind == "Conv1D" else nn.Linear(N, M, bias=bias)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer.to(dtype)


def core_linear(layer: Any, keep_dense: bool, basis: Basis, rank: int = RANK) -> CoreLinear:
    return CoreLinear(layer, factors_of(layer), rank, keep_dense, basis)


def shaken(layer: CoreLinear) -> CoreLinear:
    """As training would leave it: the core is neither diagonal nor zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        layer.core.add_(0.3 * torch.randn(layer.core.shape, generator=generator))
    return layer


def some_inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 5, N, generator=torch.Generator().manual_seed(5)).to(dtype)


def prepared(model: Any, rank: int | None, basis: Basis = "whitened") -> dict[str, int | None]:
    layers = find_targets(model, "bert", HEAD).layers
    ranks: dict[str, int | None] = dict.fromkeys(layers, rank)
    install_cores(model, lambda name: factors_of(layers[name]), ranks, basis)
    return ranks


def test_every_linear_layer_of_the_body_is_a_target_and_nothing_else(model: Any) -> None:
    found = find_targets(model, "bert", HEAD)
    per_layer = {f"attention.self.{part}" for part in ("query", "key", "value")}
    per_layer |= {"attention.output.dense", "intermediate.dense", "output.dense"}

    expected = {f"bert.encoder.layer.{i}.{part}" for i in range(2) for part in per_layer} | {"bert.pooler.dense"}
    assert found.layers.keys() == expected
    assert found.left_alone == {}
    assert found.shapes["bert.encoder.layer.0.intermediate.dense"] == (24, 16)


def test_a_language_model_s_embeddings_and_tied_head_are_no_targets() -> None:
    model = tiny_gpt2()
    found = find_targets(model, "transformer", frozenset())

    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert found.layers.keys() == {f"transformer.h.{i}.{part}" for i in range(2) for part in parts}
    assert found.left_alone == {}
    assert found.shapes["transformer.h.0.mlp.c_fc"] == (64, 16)


def test_a_new_layer_inside_the_body_belongs_to_the_head(model: Any) -> None:
    head = HEAD | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}

    assert "bert.pooler.dense" not in find_targets(model, "bert", head).layers


def test_layers_that_share_a_weight_are_left_alone_with_the_reason(model: Any) -> None:
    names = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
    first, second = (model.get_submodule(name) for name in names)
    second.weight = first.weight

    found = find_targets(model, "bert", HEAD)

    assert len(found.layers) == 2 * 6 + 1 - 2
    assert found.left_alone == dict.fromkeys(names, f"shares its weight: {names[0]}, {names[1]}")


def test_one_layer_under_two_names_is_left_alone(model: Any) -> None:
    model.bert.encoder.layer[1].output.dense = model.bert.encoder.layer[0].output.dense

    found = find_targets(model, "bert", HEAD)

    assert len(found.layers) == 2 * 6 + 1 - 2
    assert "bert.encoder.layer.0.output.dense" in found.left_alone


def test_a_layer_that_shares_its_weight_with_an_embedding_is_left_alone(model: Any) -> None:
    model.bert.pooler.dense = nn.Linear(16, 40)
    model.bert.pooler.dense.weight = model.bert.embeddings.word_embeddings.weight

    found = find_targets(model, "bert", HEAD)

    assert found.left_alone.keys() == {"bert.pooler.dense"}
    assert "word_embeddings" in found.left_alone["bert.pooler.dense"]


def test_a_body_without_a_layer_of_its_own_is_refused_with_the_reasons(model: Any) -> None:
    queries = [model.bert.encoder.layer[i].attention.self.query for i in range(2)]
    queries[1].weight = queries[0].weight
    head = HEAD | {f"{name}.weight" for name in find_targets(model, "bert", HEAD).layers}

    with pytest.raises(UnsupportedModel, match=r"no linear layer.*layer\.0.*query' shares its weight"):
        find_targets(model, "bert", head)
    with pytest.raises(UnsupportedModel, match="no linear layer"):
        find_targets(model, "bert.embeddings", HEAD)


def test_leaving_more_layers_alone_keeps_earlier_reasons(model: Any) -> None:
    found = find_targets(model, "bert", HEAD)
    fewer = found.without({"bert.pooler.dense"}, "one").without({"bert.pooler.dense", "unknown"}, "two")

    assert fewer.left_alone == {"bert.pooler.dense": "one"}
    assert len(fewer.layers) == len(found.layers) - 1


CASES = [("Linear", True), ("Linear", False), ("Conv1D", True)]


@pytest.mark.parametrize(("kind", "bias"), CASES)
@pytest.mark.parametrize("keep_dense", [False, True])
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("rank", [RANK, 5])  # 5: cheaper multiplied out in every step
def test_forward_is_the_product_of_the_parts(kind: str, bias: bool, keep_dense: bool, basis: Basis, rank: int) -> None:
    layer = linear(kind, bias)
    weight = layer.weight.T if kind == "Conv1D" else layer.weight
    cores = shaken(core_linear(layer, keep_dense, basis, rank))

    whole = cores.up @ cores.core @ cores.down + (weight if keep_dense else 0)
    expected = torch.einsum("mn,btn->btm", whole, some_inputs()) + (layer.bias if bias else 0)

    torch.testing.assert_close(cores(some_inputs()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "bias"), CASES)
@pytest.mark.parametrize("keep_dense", [False, True])
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("rank", [RANK, 5])
def test_the_folded_layer_answers_as_the_trained_one(
    kind: str, bias: bool, keep_dense: bool, basis: Basis, dtype: torch.dtype, tolerance: float, rank: int
) -> None:
    layer = linear(kind, bias, dtype)
    cores = shaken(core_linear(layer, keep_dense, basis, rank))
    x = some_inputs(dtype)
    trained = cores(x)

    folded = cores.folded()

    assert type(folded) is (type(layer) if keep_dense else LowRankLinear)
    assert matrix_shape(folded) == (M, N) if keep_dense else (folded.in_features, folded.out_features) == (N, M)
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
    assert trained.dtype == dtype
    torch.testing.assert_close(folded(x), trained, rtol=tolerance, atol=tolerance * float(trained.detach().abs().max()))


@pytest.mark.parametrize(("m", "n"), [(10, 6), (6, 10), (8, 8)])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_folded_layer_has_the_parameters_it_is_charged(m: int, n: int, rank: int) -> None:
    layer = nn.Linear(n, m)
    folded: Any = core_linear(layer, False, "whitened", rank).folded()

    assert sum(parameter.numel() for parameter in folded.parameters()) == low_rank_parameters(m, n, rank) + m
    torch.testing.assert_close(folded.up.bias, layer.bias)


@pytest.mark.parametrize(("kind", "bias"), CASES)
@pytest.mark.parametrize("within", [False, True])
def test_both_bases_start_from_the_same_function(kind: str, bias: bool, within: bool) -> None:
    layer = linear(kind, bias)
    bases = [torch.linalg.qr(torch.randn(d, d - 1, dtype=torch.float64)).Q for d in (M, N)]
    factors = factors_of(layer, Bases(*bases) if within else None)
    whitened, orthonormal = (CoreLinear(layer, factors, RANK, False, basis) for basis in BASES)
    product = factors.up[:, :RANK] * factors.singular[:RANK].float() @ factors.down[:RANK]
    expected = some_inputs() @ product.T + (layer.bias if bias else 0)

    torch.testing.assert_close(whitened(some_inputs()), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(orthonormal(some_inputs()), expected, rtol=1e-4, atol=1e-5)


def test_each_basis_is_what_it_is_called() -> None:
    layer = linear("Linear")
    factors = factors_of(layer)
    whitened, orthonormal = (CoreLinear(layer, factors, RANK, False, basis) for basis in BASES)

    metric = random_metric(N, 1).lower.float()
    inner = whitened.down @ metric @ metric.T @ whitened.down.T
    torch.testing.assert_close(inner, torch.eye(RANK), rtol=0, atol=1e-4)
    assert torch.equal(whitened.core, torch.diag(whitened.core.diagonal()))
    assert float(whitened.core.diagonal().mean().detach()) == pytest.approx(1)
    torch.testing.assert_close(orthonormal.down @ orthonormal.down.T, torch.eye(RANK), rtol=0, atol=1e-5)
    gram = orthonormal.up.T @ orthonormal.up
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(RANK), rtol=0, atol=1e-4 * float(gram[0, 0]))


@pytest.mark.parametrize("basis", BASES)
def test_a_layer_of_zeros_answers_its_bias(basis: Basis) -> None:
    layer = linear("Linear")
    nn.init.zeros_(layer.weight)

    answer = core_linear(layer, False, basis)(some_inputs())

    torch.testing.assert_close(answer, layer.bias.expand(4, 5, M))


@pytest.mark.parametrize("basis", BASES)
def test_cores_of_full_rank_leave_the_logits_as_they_were(model: Any, basis: Basis) -> None:
    names = [f"bert.encoder.layer.{i}.intermediate.dense" for i in range(2)]
    with torch.no_grad():
        for name in names:
            layer = model.get_submodule(name)
            layer.weight.copy_(torch.randn(24, 9) @ torch.randn(9, 16) / 9)
    before = model(**INPUTS).logits
    factors = {name: factors_of(model.get_submodule(name)) for name in names}

    install_cores(model, factors.__getitem__, dict.fromkeys(names, 9), basis)

    torch.testing.assert_close(model(**INPUTS).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("basis", BASES)
def test_an_untrained_core_beside_a_dense_layer_changes_no_logit(model: Any, basis: Basis) -> None:
    before = model(**INPUTS).logits
    prepared(model, None, basis)

    assert sum(isinstance(module, CoreLinear) for module in model.modules()) == 13
    assert torch.equal(model(**INPUTS).logits, before)


@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("basis", BASES)
def test_folding_trained_cores_changes_no_logit(model: Any, rank: int | None, basis: Basis) -> None:
    before = model(**INPUTS).logits
    prepared(model, rank, basis)
    for module in model.modules():
        if isinstance(module, CoreLinear):
            shaken(module)
    trained = model(**INPUTS).logits

    fold_cores(model)

    assert not any(isinstance(module, CoreLinear) for module in model.modules())
    assert sum(isinstance(module, LowRankLinear) for module in model.modules()) == (0 if rank is None else 13)
    assert float((trained - before).abs().max().detach()) > 1e-3
    torch.testing.assert_close(model(**INPUTS).logits, trained, rtol=1e-4, atol=1e-5)


def test_a_folded_language_model_answers_as_the_trained_one() -> None:
    model: Any = tiny_gpt2()
    layers = find_targets(model, "transformer", frozenset()).layers
    ranks: dict[str, int | None] = {name: (4, None)[i % 2] for i, name in enumerate(layers)}
    before = copy.deepcopy(model)
    install_cores(model, lambda name: factors_of(layers[name]), ranks)
    for module in model.modules():
        if isinstance(module, CoreLinear):
            shaken(module)
    trained = model(**INPUTS).logits

    fold_cores(model)

    assert {name for name, m in model.named_modules() if type(m) is Conv1D} == {
        n for n, r in ranks.items() if r is None
    }
    assert float((trained - before(**INPUTS).logits).abs().max().detach()) > 1e-3
    torch.testing.assert_close(model(**INPUTS).logits, trained, rtol=1e-4, atol=1e-5)


def test_only_what_is_named_is_trained_and_in_float32(model: Any) -> None:
    model.bfloat16()
    ranks = prepared(model, rank=4)
    trained = HEAD | {f"{name}.core" for name in ranks}
    train_only(model, trained)
    with torch.autocast("cpu", torch.bfloat16):
        model(**INPUTS, labels=torch.tensor([0, 1])).loss.backward()

    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == trained


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("principal", [False, True])
def test_an_adapter_changes_nothing_at_first_and_is_merged_into_the_weight(
    principal: bool, kind: str, dtype: torch.dtype
) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    dense, x = linear(kind, dtype=dtype), some_inputs(dtype)
    before, weight = dense(x), matrix_of(dense).float().clone()
    adapted = AdaptedLinear(dense, RANK, principal)
    unlike = tolerance if principal else 0
    torch.testing.assert_close(adapted(x), before, rtol=unlike, atol=unlike)
    first = adapted.up @ adapted.down

    nn.init.normal_(adapted.up, generator=torch.Generator().manual_seed(1))
    after, change = adapted(x), adapted.up @ adapted.down - first
    merged = adapted.merged()

    torch.testing.assert_close(matrix_of(merged).float() - weight, change, rtol=0, atol=tolerance)
    torch.testing.assert_close(merged(x), after, rtol=tolerance, atol=tolerance)
    assert merged is dense


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_a_principal_adapter_starts_as_the_best_product_of_its_rank(kind: str) -> None:
    dense = linear(kind)
    weight = matrix_of(dense).double().numpy(force=True).copy()
    adapted = AdaptedLinear(dense, RANK, principal=True)

    u, s, v = np.linalg.svd(weight)
    best = (u[:, :RANK] * s[:RANK]) @ v[:RANK]
    product = (adapted.up @ adapted.down).numpy(force=True)
    np.testing.assert_allclose(product, best, atol=1e-5)
    np.testing.assert_allclose(matrix_of(adapted.dense).numpy(force=True), weight - best, atol=1e-5)
    for factor in (adapted.up.T, adapted.down):
        np.testing.assert_allclose(factor.square().sum(1).numpy(force=True), s[:RANK], rtol=1e-4)


def test_a_principal_adapter_of_a_wide_layer_comes_close_to_the_best_product() -> None:
    """Wider than the directions that are drawn: they are found by iteration."""
    torch.manual_seed(0)
    decaying = torch.linalg.qr(torch.randn(200, 200))[0] * torch.arange(1, 201) ** -0.5
    dense = nn.Linear(200, 200)
    dense.weight.data.copy_(decaying @ torch.linalg.qr(torch.randn(200, 200))[0])
    left = float((torch.arange(17, 201) ** -1.0).sum()) ** 0.5

    adapted = AdaptedLinear(dense, 16, principal=True)

    assert float(adapted.weight.norm()) == pytest.approx(left, rel=1e-3)


@pytest.mark.parametrize("principal", [False, True])
def test_adapters_are_drawn_by_the_seed_and_leave_the_model_as_it_was_built(model: Any, principal: bool) -> None:
    layers = find_targets(model, "bert", HEAD).layers
    structure, before = str(model), model(**INPUTS).logits
    drawn = []
    for seed in (0, 0, 1):
        if principal:  # rounding would add up
            model = tiny_classifier()
        install_adapters(model, layers, seed, principal)
        assert adapter_names(model) == {f"{name}.{part}" for name in layers for part in ("up", "down")}
        drawn.append(model.get_parameter(f"{next(iter(layers))}.down").detach().clone())
        merge_adapters(model)

    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert (str(model), adapter_names(model)) == (structure, frozenset())
    unlike = 1e-5 if principal else 0
    torch.testing.assert_close(model(**INPUTS).logits, before, rtol=unlike, atol=unlike)
