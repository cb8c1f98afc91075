"""Texts as token ids: a torch dataset for the trainer and padded batches for everything else."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from jactus_core.data import LabelledTexts


class TokenizedTexts(Dataset[dict[str, Any]]):
    """Items of `input_ids`, `attention_mask`, … and `labels`, each as long as its text up to `max_length`."""

    def __init__(self, data: LabelledTexts, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.collate = DataCollatorWithPadding(tokenizer)
        encoded = tokenizer(data.texts, truncation=True, max_length=max_length)
        self.items = [
            {**{key: column[row] for key, column in encoded.items()}, "labels": label}
            for row, label in enumerate(data.labels)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.items[row]

    def sample(self, size: int, seed: int) -> TokenizedTexts:
        """`size` rows drawn without replacement, or all of them when there are fewer."""
        drawn = copy.copy(self)
        drawn.items = random.Random(seed).sample(self.items, min(size, len(self)))
        return drawn

    def batches(self, batch_size: int, by_length: bool = False, seed: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Padded batches in file order, by descending length (least padding), or shuffled by `seed`."""
        rows = list(range(len(self)))
        if by_length:
            rows.sort(key=lambda row: -len(self.items[row]["input_ids"]))
        elif seed is not None:
            random.Random(seed).shuffle(rows)
        for start in range(0, len(rows), batch_size):
            yield dict(self.collate([self.items[row] for row in rows[start : start + batch_size]]))


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in batch.items()}
