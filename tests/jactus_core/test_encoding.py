"""Examples as model inputs: what is cut, what is padded, what the loss sees."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoTokenizer, ViTImageProcessorPil

from jactus_core.config import CompressionConfig
from jactus_core.encoding import Encoded, asked, encode
from jactus_core.errors import NothingToPredict
from jactus_core.examples import Examples, Passage, Picture, Question, read_examples
from jactus_core.loading import Loaded
from jactus_core.losses import IGNORED
from tests.tiny import reviews

Tokenizer = Any


class Model(nn.Module):
    """As much of a model as encoding looks at: how long a sequence may be, and the type of its numbers."""

    dtype = torch.float32

    def __init__(self, positions: int | None) -> None:
        super().__init__()
        text = SimpleNamespace(max_position_embeddings=positions)
        self.config = SimpleNamespace(get_text_config=lambda: text)


def loaded(processor: Any, positions: int | None = None, **defaults: Any) -> Loaded:
    return Loaded(Model(positions), processor, "body", forward_defaults=defaults)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Tokenizer:
    """Of words; closes texts with [SEP] as any encoder's, so causal tests know what they get."""
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> Encoded:
    examples, _ = read_examples(reviews(20), "text-classification")
    return encode(examples, loaded(tokenizer), CompressionConfig(max_length=8))


def causal(tokenizer: Tokenizer, items: list[Any], labels: list[int] | None = None, **settings: Any) -> Encoded:
    task: Any = "multiple-choice" if isinstance(items[0], Question) else "text-generation"
    scoring, positions = settings.pop("scoring", False), settings.pop("positions", None)
    tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    config = CompressionConfig(**{"max_length": 32, **settings})
    return encode(Examples(task, items, labels or [0] * len(items), []), loaded(tokenizer, positions), config, scoring)


def said(tokenizer: Tokenizer, item: dict[str, Any]) -> str:
    """The words that the loss sees."""
    return str(tokenizer.decode([label for label in item["labels"] if label != IGNORED]))


def test_texts_are_cut_and_batches_padded_to_their_longest(texts: Encoded) -> None:
    lengths = [len(item["input_ids"]) for item in texts.items]
    assert max(lengths) == 8

    for number, batch in enumerate(texts.batches(6, texts.order())):
        expected = lengths[6 * number : 6 * number + 6]
        assert batch["input_ids"].shape == (len(expected), max(expected))
        assert batch["attention_mask"].sum(1).tolist() == expected


def test_the_models_own_limit_counts_when_it_is_shorter(tokenizer: Tokenizer) -> None:
    examples, _ = read_examples(reviews(20), "text-classification")
    encoded = encode(examples, loaded(tokenizer, positions=5), CompressionConfig(max_length=64))
    assert max(len(item["input_ids"]) for item in encoded.items) == 5


def test_every_order_visits_every_row_once(texts: Encoded) -> None:
    for rows in (
        texts.order(),
        texts.order(by_length=True),
        texts.order(seed=3),
        [row for batch in texts.batch_rows(6, seed=1) for row in batch],
    ):
        assert sorted(rows) == list(range(20))
    assert texts.batch_rows(6, seed=1) == texts.batch_rows(6, seed=1) != texts.batch_rows(6, seed=2)


def test_a_sample_has_no_row_twice_and_at_most_all_of_them(texts: Encoded) -> None:
    drawn = texts.sample(7, seed=0)

    assert len(drawn) == len({id(item) for item in drawn.items}) == 7
    assert [id(item) for item in texts.sample(7, seed=0).items] == [id(item) for item in drawn.items]
    assert len(texts.sample(99, seed=0)) == len(texts) == 20


def test_plain_texts_become_full_blocks_without_losing_a_token(tokenizer: Tokenizer) -> None:
    passages = [Passage("", row["text"]) for row in reviews(12)]
    encoded = causal(tokenizer, passages, max_length=16)

    assert [len(item["input_ids"]) for item in encoded.items[:-1]] == [16] * (len(encoded) - 1)
    stream = [token for item in encoded.items for token in item["input_ids"]]
    assert stream == [t for p in passages for t in tokenizer(p.text)["input_ids"]], "the end token comes once"
    assert all(item["labels"] == item["input_ids"] for item in encoded.items)


def test_the_loss_sees_the_text_and_not_the_prompt(tokenizer: Tokenizer) -> None:
    item = causal(tokenizer, [Passage("the film was", " very good")]).items[0]
    assert item["input_ids"] == tokenizer("the film was very good")["input_ids"]
    assert (
        said(tokenizer, item)
        == tokenizer.decode(tokenizer(" very good", add_special_tokens=False)["input_ids"]) + " [SEP]"
    )


def test_what_is_too_long_is_cut_at_the_prompts_beginning(tokenizer: Tokenizer) -> None:
    item = causal(tokenizer, [Passage("the film was " * 20, " great and lovely")], max_length=10).items[0]
    assert len(item["input_ids"]) == 10
    assert "great and lovely" in said(tokenizer, item)
    assert IGNORED in item["labels"]


def test_nothing_left_to_predict_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(NothingToPredict, match="raise max_length") as caught:
        causal(tokenizer, [Passage("the film was", " ")] * 2, positions=1)
    assert caught.value.param == "max_length"


QUESTIONS = [
    Question("was it good", ("very great", "dull")),
    Question("was it sad", ("grim", "happy", "a bright film")),
]


def test_training_on_questions_sees_the_right_choice_only(tokenizer: Tokenizer) -> None:
    encoded = causal(tokenizer, QUESTIONS, [1, 2], prompt="{question}")
    assert len(encoded) == 2
    assert [said(tokenizer, item).replace(" [SEP]", "") for item in encoded.items] == ["dull", "a bright film"]


def test_scoring_questions_has_every_choice_as_an_item(tokenizer: Tokenizer) -> None:
    encoded = causal(tokenizer, QUESTIONS, [1, 2], scoring=True)
    assert [(choice.question, choice.is_answer) for choice in encoded.choices] == [
        (0, False),
        (0, True),
        (1, False),
        (1, False),
        (1, True),
    ]
    assert [choice.length for choice in encoded.choices] == [10, 4, 4, 5, 13]
    assert len(encoded) == 5


def test_a_prompt_may_list_the_choices() -> None:
    assert asked(QUESTIONS[0], "{question}?\n{choices}\n") == "was it good?\n- very great\n- dull\n"
    assert asked(Question("what is {choices}", ("a", "b")), "{question} {choices}") == "what is {choices} - a\n- b"


def test_padding_never_counts_for_the_loss(tokenizer: Tokenizer) -> None:
    encoded = causal(tokenizer, QUESTIONS, [1, 2], scoring=True)
    batch = encoded.batch(range(5))
    assert batch["input_ids"].shape == batch["labels"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


def test_pictures_are_opened_when_asked_for_and_come_with_forward_defaults(tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    Image.new("RGB", (20, 10), (255, 0, 0)).save(file)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    examples = Examples("image-classification", [Picture("red", file)] * 3, [0, 1, 0], ["a", "b"])

    encoded = encode(examples, loaded(processor, interpolate_pos_encoding=True), CompressionConfig())
    batch = encoded.batch([0, 1])

    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert torch.allclose(batch["pixel_values"][0, :, 4, 4], torch.tensor([1.0, 0.0, 0.0]))
    assert batch["labels"].tolist() == [0, 1]
    assert batch["interpolate_pos_encoding"] is True
    assert not encoded.are_texts
