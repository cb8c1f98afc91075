"""Covariances against NumPy and autograd, shrinkage against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from jactus_core.calibration import Moments, calibrate
from jactus_core.errors import NonFiniteLoss
from tests.tiny import tiny_classifier

QUERY, KEY = "bert.encoder.layer.1.attention.self.query", "bert.encoder.layer.1.attention.self.key"
OUTPUT = "bert.encoder.layer.0.output.dense"


@pytest.fixture
def model() -> BertForSequenceClassification:
    return tiny_classifier()


def batch(lengths: tuple[int, ...], width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[int(i < length) for i in range(width)] for length in lengths])
    ids = torch.randint(5, 40, (len(lengths), max(lengths)), generator=generator)
    padded = torch.zeros(len(lengths), width, dtype=torch.long)
    padded[:, : ids.shape[1]] = ids
    labels = torch.arange(len(lengths)) % 2
    return {"input_ids": padded * mask, "attention_mask": mask, "labels": labels}


def layers_of(model: nn.Module, *names: str) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in names}


def test_covariances_equal_an_independent_autograd_computation_over_unpadded_tokens(
    model: BertForSequenceClassification,
) -> None:
    data = batch((3, 7, 5), width=9)
    seen: dict[str, Tensor] = {}

    def keep(module: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        seen["x"], seen["y"] = args[0], output

    handle = model.get_submodule(OUTPUT).register_forward_hook(keep)
    nn.functional.cross_entropy(model(**data).logits, data["labels"], reduction="sum").backward()
    handle.remove()
    real = data["attention_mask"].bool().numpy()
    x = seen["x"].detach().numpy()[real].astype(np.float64)
    gradient = seen["y"].grad
    assert gradient is not None
    g = gradient.numpy()[real].astype(np.float64)

    found = calibrate(model, layers_of(model, OUTPUT), [data])[OUTPUT]

    assert found.inputs.count == found.gradients.count == real.sum()
    np.testing.assert_allclose(found.inputs.covariance(), x.T @ x / len(x), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.gradients.covariance(), g.T @ g / len(g), rtol=1e-4, atol=1e-9)


def test_more_padding_changes_nothing(model: BertForSequenceClassification) -> None:
    narrow = calibrate(model, layers_of(model, OUTPUT), [batch((3, 7), width=7)])[OUTPUT]
    wide = calibrate(model, layers_of(model, OUTPUT), [batch((3, 7), width=30)])[OUTPUT]

    assert narrow.inputs.count == wide.inputs.count == 10
    torch.testing.assert_close(narrow.gradients.total, wide.gradients.total, rtol=1e-4, atol=1e-8)


def test_layers_that_read_the_same_tensor_share_one_input_covariance(model: BertForSequenceClassification) -> None:
    found = calibrate(model, layers_of(model, QUERY, KEY, OUTPUT), [batch((4, 6), width=6), batch((2, 5), width=5)])

    assert found[QUERY].inputs is found[KEY].inputs
    assert found[QUERY].inputs is not found[OUTPUT].inputs
    assert found[QUERY].inputs.count == found[QUERY].gradients.count == 17


def test_calibration_leaves_no_hook_and_no_parameter_gradient(model: BertForSequenceClassification) -> None:
    calibrate(model, layers_of(model, OUTPUT), [batch((4,), width=4)])

    assert not model.get_submodule(OUTPUT)._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_not_a_number_names_its_batch(model: BertForSequenceClassification) -> None:
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLoss, match="batch 1 is nan"):
        calibrate(model, layers_of(model, OUTPUT), [batch((4,), width=4)])


@pytest.mark.parametrize(("rows", "size"), [(8, 20), (200, 20), (5000, 6)])
def test_streamed_shrinkage_equals_scikit_learn(rows: int, size: int) -> None:
    generator = np.random.default_rng(rows)
    data = generator.normal(size=(rows, size)) @ generator.normal(size=(size, size))
    moments = Moments.zeros(size)
    for part in np.array_split(data, 3):
        moments.add(torch.from_numpy(part).float())

    expected, intensity = ledoit_wolf(data, assume_centered=True)

    assert moments.shrinkage() == pytest.approx(intensity, rel=1e-4)
    np.testing.assert_allclose(moments.shrunk(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_moments_of_nothing_and_of_zeros_shrink_to_zero() -> None:
    empty, zeros = Moments.zeros(3), Moments.zeros(3)
    zeros.add(torch.zeros(5, 3))

    assert not empty.shrunk().any()
    assert not zeros.shrunk().any()
