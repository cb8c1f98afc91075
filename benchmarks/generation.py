"""Exact match: whether what a model writes behind a prompt ends in the right answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from jactus_core.examples import Examples

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
PROMPTS_AT_ONCE = 16
MOST_NEW_TOKENS = 256


def last_number(text: str) -> str:
    """Of a solution in words, without thousands' commas and an empty fraction; empty when there is none."""
    found = NUMBER.findall(text)
    return found[-1].replace(",", "").removesuffix(".00").removesuffix(".0") if found else ""


@torch.inference_mode()
def exact_match(model: PreTrainedModel, tokenizer: Any, rows: Examples, answer_of: Callable[[str], str]) -> float:
    """Share of the passages whose answer is also that of what the model writes greedily behind their prompt."""
    right = 0
    for start in range(0, len(rows), PROMPTS_AT_ONCE):
        passages = rows.items[start : start + PROMPTS_AT_ONCE]
        prompts = tokenizer([p.prompt for p in passages], return_tensors="pt", padding=True, padding_side="left")
        prompts = prompts.to(model.device)
        written: Any = model.generate(  # type: ignore[operator]  # the class of a model that can generate is not known
            **prompts, max_new_tokens=MOST_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        texts = tokenizer.batch_decode(written[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(answer_of(text) == answer_of(p.text) for text, p in zip(texts, passages, strict=True))
    return right / len(rows)
