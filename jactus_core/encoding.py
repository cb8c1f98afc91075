"""Examples as model inputs: a torch dataset for the trainer and padded batches for everything else."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from jactus_core.config import CompressionConfig
from jactus_core.errors import NothingToPredict
from jactus_core.examples import Examples, Picture, Question
from jactus_core.loading import Loaded
from jactus_core.losses import IGNORED

Item = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """Which choice of which question an item is."""

    question: int
    length: int  # bytes of the choice's text
    is_answer: bool


class Encoded(Dataset[Item]):
    """Items of model inputs with `labels`; texts as token ids, images opened and processed when they are asked for.

    `choices` runs beside the items when every choice of a multiple-choice question is an item.
    """

    def __init__(self, items: Sequence[Item], loaded: Loaded, choices: Iterable[Choice] = ()) -> None:
        self.items = items
        self.choices = tuple(choices)
        self._processor = loaded.processor
        self._forward_defaults = loaded.forward_defaults
        self._dtype = loaded.model.dtype

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Item:
        item = self.items[row]
        picture = item.get("picture")
        if isinstance(picture, Picture):
            pixels = self._processor(picture.open(), return_tensors="pt")["pixel_values"][0]
            return {"pixel_values": pixels, "labels": item["labels"]}
        return item

    @property
    def are_texts(self) -> bool:
        return "input_ids" in self.items[0]

    def sample(self, size: int, seed: int) -> Encoded:
        """`size` rows drawn without replacement, or all of them when there are fewer."""
        drawn = copy.copy(self)
        drawn.items = random.Random(seed).sample(self.items, min(size, len(self)))
        return drawn

    def order(self, by_length: bool = False, seed: int | None = None) -> list[int]:
        """Row numbers in file order, by descending length (least padding), or shuffled by `seed`."""
        rows = list(range(len(self)))
        if by_length and self.are_texts:
            rows.sort(key=lambda row: -len(self.items[row]["input_ids"]))
        elif seed is not None:
            random.Random(seed).shuffle(rows)
        return rows

    def batch_rows(self, batch_size: int, seed: int) -> list[list[int]]:
        """Rows by batch: alike in length within a batch, the batches in random order."""
        rows = self.order(by_length=True)
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        random.Random(seed).shuffle(batches)
        return batches

    def batch(self, rows: Iterable[int]) -> dict[str, Any]:
        """The given rows as one padded batch."""
        return self.collate([self[row] for row in rows])

    def batches(self, batch_size: int, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Padded batches of the given rows."""
        for start in range(0, len(rows), batch_size):
            yield self.batch(rows[start : start + batch_size])

    def collate(self, items: list[Item]) -> dict[str, Any]:
        """Stack items, filling texts up on the right to the longest."""
        if "pixel_values" in items[0]:
            pixels = torch.stack([item["pixel_values"] for item in items]).to(self._dtype)  # not every model casts
            labels = torch.tensor([item["labels"] for item in items])
            return {"pixel_values": pixels, "labels": labels, **self._forward_defaults}
        fillers = {
            "input_ids": self._processor.pad_token_id,
            "token_type_ids": self._processor.pad_token_type_id,
            "attention_mask": 0,
            "labels": IGNORED,
        }
        return {key: _stacked([item[key] for item in items], fillers[key]) for key in items[0]}


def _stacked(values: list[Any], filler: int) -> Tensor:
    if not isinstance(values[0], list):
        return torch.tensor(values)
    longest = max(len(value) for value in values)
    return torch.tensor([value + [filler] * (longest - len(value)) for value in values])


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def encode(examples: Examples, loaded: Loaded, config: CompressionConfig, scoring: bool = False) -> Encoded:
    """Model inputs of every example. With `scoring`, each choice of a multiple-choice question is an item.

    Raises NothingToPredict when no label is left.
    """
    if examples.task == "image-classification":
        labelled = zip(examples.items, examples.labels, strict=True)
        return Encoded([{"picture": picture, "labels": label} for picture, label in labelled], loaded)
    longest = min(config.max_length, loaded.max_tokens)
    if examples.task == "text-classification":
        return Encoded(_classified(examples, loaded.processor, longest), loaded)

    choices: list[Choice] = []
    if examples.task == "multiple-choice":
        items, choices = _questions(examples, loaded.processor, config.prompt, longest, scoring)
    elif any(passage.prompt for passage in examples.items):
        end = loaded.processor.eos_token_id
        items = [_continuation(p.prompt, p.text, loaded.processor, longest, end) for p in examples.items]
    else:
        items = _blocks([passage.text for passage in examples.items], loaded.processor, longest)
    if not any(label != IGNORED for item in items for label in item["labels"][1:]):
        raise NothingToPredict("No token is left to predict in any row; raise max_length.", "max_length")
    return Encoded(items, loaded, choices)


def _classified(examples: Examples, tokenizer: Any, longest: int) -> list[Item]:
    encoded = tokenizer(examples.items, truncation=True, max_length=longest)
    return [
        {**{key: column[row] for key, column in encoded.items()}, "labels": label}
        for row, label in enumerate(examples.labels)
    ]


def _blocks(texts: list[str], tokenizer: Any, longest: int) -> list[Item]:
    """All texts in one stream, each closed by the end token, cut into blocks of `longest` tokens."""
    stream = [token for ids in tokenizer(texts)["input_ids"] for token in _closed(ids, tokenizer.eos_token_id)]
    return [_causal(stream[start : start + longest], 0) for start in range(0, len(stream), longest)]


def _continuation(prompt: str, text: str, tokenizer: Any, longest: int, end: int | None = None) -> Item:
    """`prompt` then `text`, with the loss on `text` alone; what is too long is cut at the prompt's beginning."""
    whole = tokenizer(prompt + text)["input_ids"]
    same = zip(tokenizer(prompt)["input_ids"], whole, strict=False)
    masked = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], same))  # up to an end token of the prompt alone
    ids = _closed(whole, end)
    return _causal(ids[-longest:], max(masked - max(len(ids) - longest, 0), 0))


def _closed(ids: list[int], end: int | None) -> list[int]:
    """With the end token last, once, if there is one."""
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _causal(ids: list[int], masked: int) -> Item:
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * masked + ids[masked:]}


def _questions(
    examples: Examples, tokenizer: Any, template: str, longest: int, scoring: bool
) -> tuple[list[Item], list[Choice]]:
    items, choices = [], []
    for number, (question, answer) in enumerate(zip(examples.items, examples.labels, strict=True)):
        prompt = asked(question, template)
        for index, text in enumerate(question.choices):
            if scoring or index == answer:
                items.append(_continuation(prompt, f" {text}", tokenizer, longest))
                choices.append(Choice(number, len(text.encode()), index == answer))
    return items, choices


def asked(question: Question, template: str) -> str:
    """The prompt of a question; `{choices}` becomes one line per choice."""
    listed = "\n".join(f"- {choice}" for choice in question.choices)
    return template.replace("{choices}", listed).replace("{question}", question.question)
