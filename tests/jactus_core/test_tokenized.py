from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jactus_core.data import as_texts
from jactus_core.tokenized import TokenizedTexts
from tests.tiny import reviews


@pytest.fixture
def tokenized(tiny_bert: Path) -> TokenizedTexts:
    return TokenizedTexts(as_texts(reviews(20)), AutoTokenizer.from_pretrained(tiny_bert), max_length=8)


def test_texts_are_cut_and_batches_padded_to_their_longest(tokenized: TokenizedTexts) -> None:
    lengths = [len(item["input_ids"]) for item in tokenized.items]
    assert max(lengths) == 8

    for number, batch in enumerate(tokenized.batches(6)):
        expected = lengths[6 * number : 6 * number + 6]
        assert batch["input_ids"].shape == (len(expected), max(expected))
        assert batch["attention_mask"].sum(1).tolist() == expected


def test_every_order_visits_every_row_once(tokenized: TokenizedTexts) -> None:
    rows = sorted(str(item["input_ids"]) for item in tokenized.items)
    for options in ({}, {"by_length": True}, {"seed": 3}):
        visited = [
            str(ids[mask.bool()].tolist())
            for batch in tokenized.batches(6, **options)
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert sorted(visited) == rows


def test_a_sample_has_no_row_twice_and_at_most_all_of_them(tokenized: TokenizedTexts) -> None:
    drawn = tokenized.sample(7, seed=0)

    assert len(drawn) == len({id(item) for item in drawn.items}) == 7
    assert [id(item) for item in tokenized.sample(7, seed=0).items] == [id(item) for item in drawn.items]
    assert len(tokenized.sample(99, seed=0)) == len(tokenized) == 20
