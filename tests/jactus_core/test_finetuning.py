"""What finetuning moves, and how far."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from jactus_core import finetuning
from jactus_core.config import CompressionConfig
from jactus_core.encoding import Encoded, encode
from jactus_core.examples import read_examples
from jactus_core.factorization import Factorization, Metric, factorize
from jactus_core.finetuning import (
    FALL,
    PRINCIPAL_RATE,
    ZERO_RATE,
    answers_of,
    finetune_cores,
    states_of,
    tune_adapters,
)
from jactus_core.layers import find_targets, install_adapters, install_cores, matrix_of
from jactus_core.loading import Loaded, load_model
from jactus_core.losses import IGNORED, apart, divergence, without_labels
from jactus_core.models import find_model
from tests.jactus_core.architectures import architectures, rows_for
from tests.tiny import reviews

RATE, STEPS, RANK = 1e-3, 6, 4
UNLIKE = 30.0
"""How much larger one factor is made than the other."""
FARTHEST = 4.0
"""Adam's steps stay within a few times its rate."""


def unlike_factors(weight: Tensor) -> Factorization:
    m, n = weight.shape
    found = factorize(weight, Metric.identity(n), Metric.identity(m))
    return replace(found, up=found.up * UNLIKE, down=found.down / UNLIKE)


@pytest.mark.parametrize("trained", ["core", "factors"])
def test_training_moves_factors_by_a_share_of_their_own_size_or_not_at_all(
    trained: Literal["core", "factors"], tiny_bert: Path
) -> None:
    config = CompressionConfig(
        trained=trained, learning_rate=RATE, epochs=1, batch_size=8, max_length=24, warmup_epochs=1
    )
    examples, _ = read_examples(reviews(8 * STEPS), config.task)
    torch.manual_seed(0)
    loaded = load_model(find_model(str(tiny_bert)), examples.label_names, config)
    targets = find_targets(loaded.model, loaded.body, loaded.head)
    factors = {name: unlike_factors(matrix_of(layer)) for name, layer in targets.layers.items()}
    install_cores(loaded.model, factors.__getitem__, dict.fromkeys(targets.layers, RANK))
    before = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}

    finetune_cores(loaded.model, loaded.head, encode(examples, loaded, config), config, lambda done: None)

    for name, parameter in loaded.model.named_parameters():
        moved = float((parameter.detach() - before[name]).norm() / before[name].norm())
        if name.endswith((".up", ".down")) and trained == "core":
            assert moved == 0
        elif name.endswith((".up", ".down")):
            assert 0.1 * RATE < moved < FARTHEST * STEPS * RATE
        elif name.endswith(".core"):
            assert moved > 0


def test_a_core_of_high_rank_is_moved_less(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "FULL_RATE_RANK", 8)
    config = CompressionConfig(learning_rate=RATE, epochs=1, batch_size=8, max_length=24, warmup_epochs=1)
    examples, _ = read_examples(reviews(8 * STEPS), config.task)
    torch.manual_seed(0)
    loaded = load_model(find_model(str(tiny_bert)), examples.label_names, config)
    layers = find_targets(loaded.model, loaded.body, loaded.head).layers
    small, large = list(layers)[:2]
    factors = {name: unlike_factors(matrix_of(layers[name])) for name in (small, large)}
    install_cores(loaded.model, factors.__getitem__, {small: 8, large: 32})
    before = {name: loaded.model.get_parameter(f"{name}.core").detach().clone() for name in (small, large)}

    finetune_cores(loaded.model, loaded.head, encode(examples, loaded, config), config, lambda done: None)

    moved = {
        name: float((loaded.model.get_parameter(f"{name}.core").detach() - start).abs().max())
        for name, start in before.items()
    }
    assert 0 < moved[large] < FARTHEST * STEPS * RATE * (8 / 32) ** FALL
    assert moved[large] == pytest.approx((8 / 32) ** FALL * moved[small], rel=0.2)


def test_what_was_tuned_before_is_moved_by_the_share_that_the_compression_took(tiny_bert: Path) -> None:
    def moved(share: float, kept_dense: bool = False) -> tuple[float, float]:
        """The core and the head."""
        config = CompressionConfig(
            learning_rate=RATE,
            epochs=1 / (1 - share),
            adapter_share=share,
            batch_size=8,
            max_length=24,
            warmup_epochs=1,
        )
        examples, _ = read_examples(reviews(8 * STEPS), config.task)
        torch.manual_seed(0)
        loaded = load_model(find_model(str(tiny_bert)), examples.label_names, config)
        layers = find_targets(loaded.model, loaded.body, loaded.head).layers
        name, other = list(layers)[:2]  # both of 32 inputs and outputs
        factors = {key: unlike_factors(matrix_of(layers[key])) for key in (name, other)}
        install_cores(loaded.model, factors.__getitem__, {name: 8, **({other: None} if kept_dense else {})})
        watched = [loaded.model.get_parameter(key) for key in (f"{name}.core", "classifier.weight")]
        before = [parameter.detach().clone() for parameter in watched]
        finetune_cores(loaded.model, loaded.head, encode(examples, loaded, config), config, lambda done: None)
        core, head = (float((now.detach() - then).norm()) for now, then in zip(watched, before, strict=True))
        return core, head

    untuned = moved(0)
    lost = 24 * 24 / 32**2
    assert moved(0.5) == pytest.approx([lost * value for value in untuned], rel=0.2)
    assert moved(0.5, kept_dense=True) == pytest.approx([lost / 2 * value for value in untuned], rel=0.2)


def test_adapters_are_moved_by_their_size_where_they_have_one(tiny_bert: Path) -> None:
    """Principal ones by a share of it, those from zero by the rate itself."""
    config = CompressionConfig(
        learning_rate=RATE, epochs=1, adapter_share=0.999, batch_size=8, max_length=24, warmup_epochs=1
    )
    examples, _ = read_examples(reviews(8 * STEPS), config.task)

    def moved(principal: bool, part: str) -> float:
        """Per step, root mean square of the farthest adapter's."""
        torch.manual_seed(0)
        loaded = load_model(find_model(str(tiny_bert)), examples.label_names, config)
        layers = find_targets(loaded.model, loaded.body, loaded.head).layers
        for layer in layers.values():
            matrix_of(layer).mul_(UNLIKE)
        install_adapters(loaded.model, layers, 0, principal)
        before = {name: loaded.model.get_parameter(f"{name}.{part}").detach().clone() for name in layers}
        tune_adapters(loaded.model, loaded.head, encode(examples, loaded, config), config, lambda done: None)
        return max(
            float((loaded.model.get_parameter(f"{name}.{part}").detach() - old).square().mean().sqrt())
            / (float(old.square().mean().sqrt()) if principal else 1.0)
            / STEPS
            for name, old in before.items()
        )

    for part in ("up", "down"):
        assert 0.1 < moved(True, part) / (PRINCIPAL_RATE * RATE) < FARTHEST
        assert 0.1 < moved(False, part) / (ZERO_RATE * RATE) < FARTHEST


def teacher(name: str, folder: Path) -> tuple[CompressionConfig, Loaded, dict[str, Factorization], Encoded]:
    """A dense model to learn from, the factors of its layers, and rows."""
    architecture = architectures[name]
    config = CompressionConfig(
        task=architecture.task, learning_rate=1e-2, epochs=40, adapter_share=0, batch_size=8, max_length=24
    )
    examples, _ = read_examples(rows_for(config.task), config.task)
    loaded = load_model(find_model(str(architecture.write(folder / "model"))), examples.label_names, config)
    layers = find_targets(loaded.model, loaded.body, loaded.head).layers
    factors = {name: unlike_factors(matrix_of(layer)) for name, layer in layers.items()}
    return config, loaded, factors, encode(examples, loaded, config)


def test_a_teacher_s_answers_are_wanted_and_no_label_is_read(tmp_path: Path) -> None:
    config, loaded, factors, rows = teacher("mistral", tmp_path)

    def repaired(rows: Encoded) -> tuple[float, float, Tensor]:
        """How far the compressed model is from its teacher, before and after, and a core that came of it."""
        model = copy.deepcopy(loaded.model)
        install_cores(model, factors.__getitem__, dict.fromkeys(factors, RANK))
        batch = without_labels(rows.batch(range(len(rows))))
        real = batch["attention_mask"].bool()

        def distance() -> float:
            with torch.no_grad():
                return float(divergence(model(**batch).logits[real], loaded.model(**batch).logits[real]))

        before = distance()
        finetune_cores(model, loaded.head, rows, config, lambda done: None, loss=answers_of(loaded.model))
        return before, distance(), model.get_parameter(f"{next(iter(factors))}.core").detach()

    unlabelled = copy.copy(rows)
    unlabelled.items = [{**item, "labels": [IGNORED] * len(item["labels"])} for item in rows.items]
    before, after, core = repaired(rows)

    assert after < 0.7 * before
    assert torch.equal(repaired(unlabelled)[2], core)


@pytest.mark.parametrize("name", ["vit", "swin", "bert", "t5"])
def test_a_classifier_stays_with_its_teacher_s_hidden_states(name: str, tmp_path: Path) -> None:
    config, loaded, factors, rows = teacher(name, tmp_path)
    batch = rows.batch(range(len(rows)))

    def far(loss: finetuning.Loss | None) -> float:
        """How far the last block's output is from the teacher's after training."""
        model = copy.deepcopy(loaded.model)
        install_cores(model, factors.__getitem__, dict.fromkeys(factors, RANK))
        finetune_cores(model, loaded.head, rows, config, lambda done: None, loss=loss)
        with torch.no_grad():
            outputs = [m(**without_labels(batch), output_hidden_states=True) for m in (model, loaded.model)]
        mine, theirs = (output.get("hidden_states", output.get("decoder_hidden_states"))[-1] for output in outputs)
        return float(apart(mine, theirs, batch.get("attention_mask")))

    loss = states_of(loaded.model)
    with torch.no_grad():
        assert float(loss(loaded.model, batch)) == pytest.approx(float(loaded.model(**batch).loss), rel=1e-4)
    assert far(loss) < 0.8 * far(None)


@pytest.mark.parametrize("name", ["mistral", "vit"])
def test_the_loss_of_training_is_the_model_s_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = architectures[name]
    folder = architecture.write(tmp_path / "model")
    examples, _ = read_examples(rows_for(architecture.task), architecture.task)
    config = CompressionConfig(task=architecture.task, epochs=1, batch_size=len(examples), max_length=24)
    loaded = load_model(find_model(str(folder)), examples.label_names, config)
    rows = encode(examples, loaded, config)
    logged: list[float] = []
    monkeypatch.setattr(
        finetuning._Watch, "on_log", lambda self, *state, logs, **options: logged.append(logs.get("loss"))
    )

    with torch.no_grad():
        own = float(loaded.model(**rows.batch(range(len(rows)))).loss)
    finetuning.fit(loaded.model, rows, config, lambda done: None)

    assert logged[0] == pytest.approx(own, rel=1e-4)


def test_training_leaves_nothing_on_a_model_so_that_the_next_one_computes_in_bfloat16_too(tmp_path: Path) -> None:
    architecture = architectures["mistral"]
    config = CompressionConfig(task=architecture.task, epochs=1, max_length=24, dtype="bfloat16")
    examples, _ = read_examples(rows_for(config.task), config.task)
    loaded = load_model(find_model(str(architecture.write(tmp_path / "model"))), [], config)
    model, rows = loaded.model, encode(examples, loaded, config)
    described, attributes = model.config.to_dict(), set(vars(model))
    install_adapters(model, find_targets(model, loaded.body, loaded.head).layers, seed=0, principal=False)
    seen: list[bool] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))

    for trained in (1, 2):
        tune_adapters(model, loaded.head, rows, config, lambda done: None)
        assert seen
        assert all(seen), f"training {trained}"
        assert set(vars(model)) == attributes
        assert model.config.to_dict() == described
