"""Covariances against autograd in float64, shrinkage against scikit-learn, sampled labels against the exact Fisher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf, oas
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from jactus_core import calibration
from jactus_core.calibration import (
    PROBED_ROWS,
    LayerStatistics,
    Moments,
    calibrate,
    covariance_bytes,
    find_readers,
    plan_passes,
)
from jactus_core.errors import NonFiniteLoss
from jactus_core.layers import find_targets, matrix_of
from jactus_core.modeling_jactus import matrix_shape
from tests.tiny import tiny_classifier

Array = np.ndarray[Any, np.dtype[np.float64]]
Batch = dict[str, Tensor]
ATTENTION = "bert.encoder.layer.1.attention.self"
OUTPUT = "bert.encoder.layer.0.output.dense"
HEAD = frozenset({"classifier.weight", "classifier.bias"})


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()


def tiny_opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=40,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return OPTForCausalLM(config).eval()


def padded(lengths: tuple[int, ...], width: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]
    wide = torch.zeros(mask.shape, dtype=torch.long)
    wide[:, : ids.shape[1]] = ids
    return {"input_ids": wide * mask, "attention_mask": mask.long()}


def classified(*lengths: int, width: int | None = None) -> Batch:
    return padded(lengths, width) | {"labels": torch.arange(len(lengths)) % 2}


def causal(*lengths: int) -> Batch:
    """The first two tokens of every row are a prompt that does not count."""
    batch = padded(lengths)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :2] = -100
    return batch | {"labels": labels}


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed by hand over the labels that count."""
    if labels.dim() == 1:
        return -sum((row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)), torch.tensor(0.0))
    total = torch.tensor(0.0)
    for row, targets in zip(logits, labels, strict=True):
        for position in range(1, len(targets)):
            if targets[position] != -100:
                total = total - row[position - 1].log_softmax(0)[targets[position]]
    return total


def brute_force(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, tuple[Array, Array]]:
    """Everything every layer reads, (N, n), and the gradient of all it writes, (N, m), by a full double backward."""
    model = copy.deepcopy(model).double().eval().requires_grad_(True)
    seen: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in names}
    mask = torch.ones(0)

    def hook(name: str) -> Callable[..., None]:
        def keep(_: Any, args: Any, output: Tensor) -> None:
            output.retain_grad()
            real = mask.flatten() if args[0].numel() // args[0].shape[-1] == mask.numel() else torch.ones(len(args[0]))
            seen[name].append((args[0], output, real.bool()))

        return keep

    for name in names:
        model.get_submodule(name).register_forward_hook(hook(name))
    for batch in batches:
        mask = batch["attention_mask"]
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        negative_log_likelihood(model(**inputs).logits, batch["labels"]).backward()

    def rows(which: Callable[[Tensor, Tensor], Tensor | None], name: str) -> Array:
        parts = [(cast(Tensor, which(x, y)).detach(), real) for x, y, real in seen[name]]
        return np.concatenate([part.reshape(-1, part.shape[-1])[real].numpy() for part, real in parts])

    return {name: (rows(lambda x, _: x, name), rows(lambda _, y: y.grad, name)) for name in names}


def assert_equal_to_brute_force(
    found: Mapping[str, LayerStatistics], model: nn.Module, batches: Sequence[Batch]
) -> None:
    for name, (x, g) in brute_force(model, list(found), batches).items():
        seen = found[name]
        assert seen.inputs.tokens == seen.gradients.tokens == len(x) == len(g), name
        weight = matrix_of(model.get_submodule(name)).double().numpy()
        for moments, vectors, across in ((seen.inputs, x, weight), (seen.gradients, g, weight.T)):
            assert moments.mean_square == pytest.approx(np.square(vectors).mean(), rel=1e-4)
            summed = vectors @ across.T if moments.of_products else vectors
            expected = summed.T @ summed / len(vectors)
            np.testing.assert_allclose(
                moments.covariance(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name
            )


def calibrated(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch], **options: Any
) -> dict[str, LayerStatistics]:
    groups = find_readers(model, layers, batches[0])
    return calibrate(model, layers, groups, batches, **options)


def same(one: Mapping[str, LayerStatistics], other: Mapping[str, LayerStatistics]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        for a, b in ((one[name].inputs, other[name].inputs), (one[name].gradients, other[name].gradients)):
            torch.testing.assert_close(a.total, b.total, rtol=1e-5, atol=1e-12)
            assert (a.tokens, a.rows, a.probed) == (b.tokens, b.rows, b.probed)
            assert a.spread == pytest.approx(b.spread, rel=1e-5)


CLASSIFIED = [classified(3, 7, 5, width=9), classified(4, 6)]
CAUSAL = [causal(3, 9, 5), causal(8, 4)]
MODELS: list[Any] = [
    pytest.param(tiny_classifier, "bert", HEAD, CLASSIFIED, id="BERT classifier"),
    pytest.param(tiny_gpt2, "transformer", frozenset(), CAUSAL, id="GPT-2"),
    pytest.param(tiny_opt, "model", frozenset(), CAUSAL, id="OPT, whose feed-forward layers read (tokens, d)"),
]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("make", "body", "head", "batches"), MODELS)
def test_covariances_of_every_layer_equal_autograd_over_real_tokens(
    make: Callable[[], PreTrainedModel], body: str, head: frozenset[str], batches: list[Batch], whole: bool
) -> None:
    model = make()
    layers = find_targets(model, body, head).layers

    found = calibrated(model, layers, batches, whole=whole)

    assert found.keys() == layers.keys()
    for name, seen in found.items():
        m, n = matrix_shape(layers[name])
        assert (seen.inputs.of_products, seen.gradients.of_products) == (m < n and not whole, m > n and not whole)
    assert_equal_to_brute_force(found, model, batches)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("make", "body", "head", "batches"), MODELS[:2])
def test_one_group_per_pass_finds_what_a_single_pass_finds(
    make: Callable[[], PreTrainedModel], body: str, head: frozenset[str], batches: list[Batch], sampled: bool
) -> None:
    model = make()
    layers = find_targets(model, body, head).layers
    groups = find_readers(model, layers, batches[0])
    sizes = {group[0]: covariance_bytes([matrix_shape(layers[name]) for name in group]) for group in groups}
    passes = plan_passes(groups, sizes, bound=1)
    assert passes == [[group] for group in groups]

    parts: dict[str, LayerStatistics] = {}
    for these in passes:
        torch.manual_seed(7)
        parts |= calibrate(model, layers, these, batches, sampled)

    torch.manual_seed(7)
    same(parts, calibrate(model, layers, groups, batches, sampled))


def test_passes_keep_to_the_bound_and_to_the_order() -> None:
    groups = [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    sizes = {"a": 50, "c": 40, "d": 20, "e": 200, "f": 10}

    assert plan_passes(groups, sizes, bound=100) == [[["a", "b"], ["c"]], [["d"]], [["e"]], [["f"]]]
    assert plan_passes(groups, sizes, bound=None) == [groups]
    assert plan_passes([], {}, bound=100) == []


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("shapes", [[(5, 5), (3, 5), (8, 5)], [(3, 5), (2, 5)], [(8, 5)]])
def test_covariance_bytes_are_those_of_the_tensors(shapes: list[tuple[int, int]], whole: bool) -> None:
    found = LayerStatistics.zeros(shapes, torch.device("cpu"), whole)
    held = {id(m.total): m.total.nbytes for seen in found for m in (seen.inputs, seen.gradients)}

    assert covariance_bytes(shapes, whole) == sum(held.values())


def test_layers_share_what_they_read_unless_all_of_them_are_wide() -> None:
    def own(*rows: int) -> int:
        found = LayerStatistics.zeros([(m, 5) for m in rows], torch.device("cpu"), whole=False)
        return len({id(seen.inputs) for seen in found})

    assert (own(5, 3), own(3, 8), own(3, 2), own(3)) == (1, 1, 2, 1)


def test_padding_changes_nothing() -> None:
    model = tiny_classifier()
    layers = {OUTPUT: model.get_submodule(OUTPUT)}

    narrow = calibrated(model, layers, [classified(3, 7)])
    wide = calibrated(model, layers, [classified(3, 7, width=30)])

    assert narrow[OUTPUT].inputs.tokens == 10
    same(narrow, wide)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_that_read_the_same_tensor_are_one_group(device: str) -> None:
    model = tiny_classifier().to(device)  # type: ignore[arg-type]
    layers = find_targets(model, "bert", HEAD).layers
    batch = {"input_ids": CLASSIFIED[0]["input_ids"].to(device)}

    groups = find_readers(model, layers, batch)

    shared = [group for group in groups if len(group) > 1]
    parts = ("query", "key", "value")
    assert shared == [[f"bert.encoder.layer.{i}.attention.self.{part}" for part in parts] for i in range(2)]
    assert sorted(name for group in groups for name in group) == sorted(layers)


class Toy(nn.Module):
    """Classifies one token per row by whatever `forward` it is given."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=self._forward(self, x.clone()))

    @property
    def layers(self) -> dict[str, nn.Module]:
        return dict(self.named_children())


def toy(forward: Callable[[Any, Tensor], Tensor], *names: str, kind: Callable[[], nn.Module] | None = None) -> Toy:
    torch.manual_seed(0)
    return Toy(forward, **{name: (kind or (lambda: nn.Linear(5, 5)))() for name in names})


def points(rows: int = 6, *, tokens: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(2)
    shape = (rows, 5) if tokens is None else (rows, tokens, 5)
    return {"x": torch.randn(shape, generator=generator), "labels": torch.arange(rows) % 5}


def test_a_layer_called_twice_does_not_share_with_one_that_read_its_first_input_only() -> None:
    model = toy(lambda m, x: m.twice(torch.tanh(m.twice(x))) + m.once(x) + m.other(x), "twice", "once", "other")

    groups = find_readers(model, model.layers, points())
    found = calibrate(model, model.layers, groups, [points()])

    assert groups == [["twice"], ["once", "other"]]
    assert found["once"].inputs is found["other"].inputs
    assert found["twice"].inputs.tokens == found["twice"].gradients.tokens == 12
    first = points()["x"]
    second = torch.tanh(model.layers["twice"](first))
    both = torch.cat([first, second]).detach().double()
    torch.testing.assert_close(found["twice"].inputs.covariance(), both.T @ both / 12, rtol=1e-5, atol=1e-6)


def test_layers_that_read_one_tensor_before_and_after_it_changed_do_not_share() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.before(x)
        x += 1
        return y + m.after(x)

    model = toy(forward, "before", "after")

    assert find_readers(model, model.layers, points()) == [["before"], ["after"]]


def test_a_silent_layer_is_a_group_of_its_own_without_tokens() -> None:
    model = toy(lambda m, x: m.heard(x), "heard", "silent", "mute")

    groups = find_readers(model, model.layers, points())
    found = calibrate(model, model.layers, groups, [points()])

    assert groups == [["heard"], ["silent"], ["mute"]]
    assert found["heard"].inputs.tokens == 6
    assert [found[name].inputs.tokens + found[name].gradients.tokens for name in ("silent", "mute")] == [0, 0]


def test_a_pass_over_silent_layers_alone_ends_without_tokens() -> None:
    model = toy(lambda m, x: m.heard(x), "heard", "silent")

    found = calibrate(model, model.layers, [["silent"]], [points()])

    assert found["silent"].inputs.tokens == 0


def test_a_layer_that_gets_an_empty_batch_learns_nothing_from_it() -> None:
    model = toy(lambda m, x: m.all(x) + nn.functional.pad(m.some(x[x[:, 0] > 1e9]), (0, 0, 0, len(x))), "all", "some")

    found = calibrate(model, model.layers, [["all"], ["some"]], [points()])

    assert (found["all"].inputs.tokens, found["some"].inputs.tokens, found["some"].inputs.rows) == (6, 0, 0)


@pytest.mark.parametrize("kind", [lambda: nn.Linear(5, 5), lambda: nn.Linear(5, 5, bias=False), lambda: Conv1D(5, 5)])
@pytest.mark.parametrize("tokens", [None, 3])
def test_a_model_that_changes_outputs_in_place_calibrates_alike(
    kind: Callable[[], nn.Module], tokens: int | None
) -> None:
    def pooled(x: Tensor) -> Tensor:
        return x if x.dim() == 2 else x.mean(1)

    def in_place(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        y *= 3
        y.tanh_()
        z = m.second(y)
        z += y
        z *= 2
        return pooled(z)

    def out_of_place(m: Any, x: Tensor) -> Tensor:
        y = torch.tanh(m.first(x) * 3)
        return pooled((m.second(y) + y) * 2)

    batches = [points(tokens=tokens)]
    found = [
        calibrated(model, model.layers, batches)
        for model in (toy(f, "first", "second", kind=kind) for f in (in_place, out_of_place))
    ]

    assert float(found[0]["first"].gradients.total.abs().max()) > 0
    same(*found)


@pytest.mark.parametrize(("make", "body", "head", "batches"), MODELS[:2])
def test_training_mode_and_gradient_checkpointing_change_nothing(
    make: Callable[[], PreTrainedModel], body: str, head: frozenset[str], batches: list[Batch]
) -> None:
    plain, model = make(), make()
    model.gradient_checkpointing_enable()
    model.train()

    found = [calibrated(m, find_targets(m, body, head).layers, batches) for m in (plain, model)]

    same(*found)


def test_calibration_leaves_no_hook_and_no_parameter_gradient() -> None:
    model = tiny_classifier()
    calibrated(model, {OUTPUT: model.get_submodule(OUTPUT)}, CLASSIFIED)

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("sampled", [False, True])
def test_a_loss_that_is_not_a_number_names_its_batch(sampled: bool) -> None:
    model = toy(lambda m, x: m.layer(x), "layer")
    broken = points() | {"x": torch.full((6, 5), float("nan"))}

    with pytest.raises(NonFiniteLoss, match="batch 2 is nan"):
        calibrate(model, model.layers, [["layer"]], [points(), broken, points()], sampled)
    assert not model.layers["layer"]._forward_hooks


def test_gradients_that_are_not_numbers_are_refused() -> None:
    model = toy(lambda m, x: (m.layer(x) * 0).sqrt(), "layer")  # finite, with an infinite slope times zero

    with pytest.raises(NonFiniteLoss):
        calibrate(model, model.layers, [["layer"]], [points()])


def test_sampled_labels_give_the_exact_fisher_in_expectation() -> None:
    draws = 20_000
    batch = {key: value.repeat(draws // 4, *[1] * (value.dim() - 1)) for key, value in points(4).items()}
    model = toy(lambda m, x: 2 * m.layer(x), "layer")
    torch.manual_seed(1)
    found = calibrate(model, model.layers, [["layer"]], [batch], sampled_labels=True)["layer"].gradients
    p = (2 * model.layers["layer"](points(4)["x"])).softmax(1).detach().double().numpy()
    exact = 4 * np.mean([np.diag(row) - np.outer(row, row) for row in p], axis=0)
    empirical = 4 * np.mean([np.outer(e, e) for e in p - np.eye(5)[points(4)["labels"].numpy()]], axis=0)

    tolerance = 5 * 4 / np.sqrt(draws)  # five standard errors of a mean of numbers between -4 and 4
    np.testing.assert_allclose(found.covariance(), exact, rtol=0, atol=tolerance)
    assert np.abs(empirical - exact).max() > 3 * tolerance  # or else this would prove nothing


def test_rows_without_a_counted_label_add_no_gradient_unless_labels_are_drawn_for_every_token() -> None:
    model = tiny_gpt2()
    layers = find_targets(model, "transformer", frozenset()).layers
    batch = causal(4, 6)
    batch["labels"][:] = -100

    for sampled in (False, True):
        found = calibrated(model, layers, [batch], sampled_labels=sampled)
        assert all(seen.inputs.tokens == 10 and bool(seen.gradients.total.any()) == sampled for seen in found.values())


def gathered(data: Array, parts: int = 3, probed_parts: int = 3, weight: Array | None = None) -> Moments:
    """Of vectors, or of what a weight makes of them."""
    moments = Moments.zeros(data.shape[-1], products=None if weight is None else len(weight))
    for number, part in enumerate(np.array_split(data, parts)):
        products = None if weight is None else torch.from_numpy(part @ weight.T).float()
        moments.add(torch.from_numpy(part).float(), probe=number < probed_parts, products=products)
    return moments


def mixed(rows: int, size: int) -> Array:
    generator = np.random.default_rng(rows)
    return generator.normal(size=(rows, size)) @ generator.normal(size=(size, size))


@pytest.mark.parametrize(("rows", "size"), [(8, 20), (PROBED_ROWS, 20), (50, 6)])
def test_ledoit_wolf_with_one_token_per_row_equals_scikit_learn(rows: int, size: int) -> None:
    data = mixed(rows, size)

    shrunk, intensity = gathered(data).shrunk("ledoit-wolf")

    expected, expected_intensity = ledoit_wolf(data, assume_centered=True)
    assert 0 < expected_intensity < 1
    assert intensity == pytest.approx(expected_intensity, rel=1e-4)
    np.testing.assert_allclose(shrunk, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_ledoit_wolf_over_many_rows_is_near_scikit_learn_from_those_probed() -> None:
    data = mixed(4000, 10)
    moments = gathered(data, parts=125, probed_parts=1)

    assert moments.probed == 32
    assert moments.shrunk("ledoit-wolf")[1] == pytest.approx(ledoit_wolf(data, assume_centered=True)[1], rel=0.5)


@pytest.mark.parametrize(("rows", "size"), [(8, 20), (200, 20), (5000, 6)])
def test_oas_equals_scikit_learn(rows: int, size: int) -> None:
    data = mixed(rows, size)

    shrunk, intensity = gathered(data).shrunk("oas")

    expected, expected_intensity = oas(data, assume_centered=True)
    assert intensity == pytest.approx(expected_intensity, rel=1e-4)
    np.testing.assert_allclose(shrunk, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_given_intensity_is_taken_as_it_is() -> None:
    data = mixed(30, 4)
    plain = data.T @ data / 30

    shrunk, intensity = gathered(data).shrunk(0.25)

    assert intensity == 0.25
    np.testing.assert_allclose(shrunk, 0.75 * plain + 0.25 * np.trace(plain) / 4 * np.eye(4), rtol=1e-5, atol=1e-5)


def test_products_shrink_as_the_vectors_would() -> None:
    data, weight = mixed(30, 6), mixed(4, 6)
    whole, products = gathered(data), gathered(data, weight=weight)

    expected = weight @ whole.shrunk(0.25)[0].numpy() @ weight.T
    shrunk, intensity = products.shrunk(0.25, torch.from_numpy(weight @ weight.T))

    assert intensity == 0.25
    np.testing.assert_allclose(shrunk, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("rows", [20, 60])
def test_the_shrinkage_of_products_is_near_the_best_for_them(rows: int) -> None:
    generator = np.random.default_rng(0)
    root, weight = np.diag(np.linspace(1, 3, 40)), generator.normal(size=(20, 40))
    identity = torch.from_numpy(weight @ weight.T)
    truth = weight @ root.T @ root @ weight.T
    candidates = np.linspace(0, 1, 41)
    errors, chosen = np.zeros(len(candidates)), 0.0
    for _ in range(20):
        moments = gathered(generator.normal(size=(rows, 40)) @ root, parts=1, weight=weight)
        errors += [np.square(moments.shrunk(float(rho), identity)[0].numpy() - truth).sum() for rho in candidates]
        chosen += np.square(moments.shrunk("ledoit-wolf", identity)[0].numpy() - truth).sum()

    assert 0 < errors.argmin() < len(candidates) - 1
    assert chosen < 1.25 * errors.min()
    assert chosen < 0.5 * errors[0], "or else doing nothing would do"


def test_rows_and_not_tokens_are_the_independent_draws() -> None:
    data = mixed(20, 6)
    once, repeated, padded_ = gathered(data), Moments.zeros(6), Moments.zeros(6)
    tokens = torch.from_numpy(data).float()[:, None].repeat(1, 50, 1)
    repeated.add(tokens)
    mask = torch.arange(50).expand(20, 50) < 30
    padded_.add(tokens * torch.where(mask, 1.0, 9.0)[..., None], mask)

    assert (once.tokens, repeated.tokens, padded_.tokens) == (20, 1000, 600)
    for moments in (repeated, padded_):
        assert moments.shrunk("ledoit-wolf")[1] == pytest.approx(once.shrunk("ledoit-wolf")[1], rel=1e-4)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 11])
def test_covariances_are_whole_whatever_the_block(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(calibration, "SYMMETRIC_BLOCK", 4)
    data = mixed(30, size)

    found = gathered(data).covariance()

    assert torch.equal(found, found.T)
    np.testing.assert_allclose(found, data.T @ data / 30, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", "oas", 0.5])
def test_moments_of_nothing_and_of_zeros_shrink_to_zero(shrinkage: Any) -> None:
    empty, zeros = Moments.zeros(3), Moments.zeros(3)
    zeros.add(torch.zeros(5, 3))

    assert not empty.shrunk(shrinkage)[0].any()
    assert not zeros.shrunk(shrinkage)[0].any()
