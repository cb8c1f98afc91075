"""Loading a model for a task: what belongs to the head, how long a text may be."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from jactus_core.config import CompressionConfig
from jactus_core.loading import KERNEL_CACHES, Loaded, body_name, load_model, read_config, set_labels
from jactus_core.models import find_model
from jactus_core.tasks import TASKS
from tests.jactus_core.architectures import architectures

SMALL: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
}
MODELS: dict[str, PreTrainedModel] = {
    "bert": BertForSequenceClassification(BertConfig(**SMALL)),
    "roberta": RobertaForSequenceClassification(RobertaConfig(**SMALL, pad_token_id=1)),
    "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=20)),
}


@pytest.mark.parametrize(("name", "longest"), [("bert", 20), ("roberta", 18), ("gpt2", 20)])
def test_the_longest_text_is_what_the_position_embeddings_carry(name: str, longest: int) -> None:
    model = MODELS[name].eval()
    loaded = Loaded(model, SimpleNamespace(model_max_length=10**30), body_name(model))

    assert loaded.max_tokens == longest
    model(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


def test_a_shorter_limit_of_the_tokenizer_counts() -> None:
    assert Loaded(MODELS["bert"], SimpleNamespace(model_max_length=12), "bert").max_tokens == 12


@pytest.mark.parametrize(("name", "body"), [("bert", "bert"), ("roberta", "roberta"), ("gpt2", "transformer")])
def test_the_body_is_what_the_architecture_names(name: str, body: str) -> None:
    assert body_name(MODELS[name]) == body


def test_the_body_is_the_largest_child_where_the_architecture_names_none() -> None:
    model = torch.nn.Module()
    model.tower, model.classifier = torch.nn.Linear(30, 30), torch.nn.Linear(30, 2)
    assert body_name(model) == "tower"


def test_every_architecture_of_the_tests_is_a_task_of_its_own() -> None:
    assert {architecture.task for architecture in architectures.values()} == {
        "image-classification",
        "text-classification",
        "text-generation",
        "multiple-choice",
    }


def test_a_classifier_keeps_no_cache_and_a_generator_does(tmp_path: Path) -> None:
    for name, cached in (("gpt2-classifier", False), ("gpt2", True)):
        task = TASKS[architectures[name].task]
        folder = architectures[name].write(tmp_path / name)
        config = read_config(find_model(str(folder)), task)
        set_labels(config, ["a", "b"], task)
        assert config.use_cache is cached


@pytest.mark.parametrize(("given", "kept"), [(None, "256"), ("7", "7")])
def test_few_kernels_are_kept_unless_the_environment_says_otherwise(
    given: str | None, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KERNEL_CACHES:
        monkeypatch.setenv(name, given or "")
        if given is None:
            monkeypatch.delenv(name)
    architecture = architectures["bert"]

    load_model(find_model(str(architecture.write(tmp_path))), ["a", "b"], CompressionConfig(task=architecture.task))

    assert [os.environ[name] for name in KERNEL_CACHES] == [kept, kept]
