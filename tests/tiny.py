"""Small things that tests learn from: a random BERT and a two-class dataset."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

WORDS = {
    "good": ["great", "lovely", "fine", "happy", "bright", "superb", "warm", "kind"],
    "bad": ["awful", "dull", "poor", "sad", "grim", "broken", "cold", "rude"],
}
FILLER = ["the", "a", "film", "book", "was", "and", "very", "it", "plot", "story", "with", "scene"]


def reviews(rows: int = 60) -> list[dict[str, str]]:
    """Balanced rows of `text` and `label` whose label can be read off the words."""
    generator = random.Random(0)
    found = []
    for row in range(rows):
        label = ("good", "bad")[row % 2]
        words = generator.choices(FILLER, k=generator.randint(2, 12)) + generator.choices(WORDS[label], k=2)
        generator.shuffle(words)
        found.append({"text": " ".join(words), "label": label})
    return found


def write_reviews(path: Path, rows: int = 60) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in reviews(rows)), encoding="utf-8")
    return path


def tiny_classifier() -> BertForSequenceClassification:
    """A random two-layer classifier in evaluation mode, without a tokenizer."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return BertForSequenceClassification(config).eval()


def write_tiny_bert(folder: Path, layers: int = 2) -> Path:
    """A random BERT encoder without a task head, with a word tokenizer, as the hub would give it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLER, *WORDS["good"], *WORDS["bad"]]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,  # so that random features tell texts apart
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
