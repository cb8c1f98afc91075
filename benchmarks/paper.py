"""The settings that JACTUS was published with, for a machine with a GPU and the hub.

    python -m benchmarks.quality --experiments vit-pets … llama-commonsense llama-math --methods jactus lora

ViT-B/16 on the eight datasets of FourierFT; Llama-2-7B on commonsense 170k, scored on the eight sets of LLM-Adapters in
its instructions; Llama-2-7B on MetaMathQA, scored on GSM8K. Epochs, batches and lengths are those of FourierFT and of
LLM-Adapters. Tests run all of them on tiny random models with rows of the same columns; no figure of them is published
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.experiment import Experiment, Row, Test
from benchmarks.generation import last_number

VIT_B: Mapping[str, Any] = {
    "task": "image-classification",
    "model": "google/vit-base-patch16-224-in21k",
    "folder": "vit-b16",
    "rows": 10**6,
    "scored_rows": (10**6, 10**6),
    "settings": {"epochs": 10, "batch_size": 128, "dtype": "bfloat16"},
}
LLAMA: Mapping[str, Any] = {
    "model": "meta-llama/Llama-2-7b-hf",
    "folder": "llama-2-7b",
    "rows": 10**6,
    "scored_rows": (120, 10**6),
    "seeds": 1,
}
LLAMA_SETTINGS: Mapping[str, Any] = {
    "epochs": 3,
    "batch_size": 16,
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
    "prompt": "{question}\n\nAnswer:",
}
IMAGE_SETS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "pets": ("timm/oxford-iiit-pet", {}),
    "cars": ("tanganke/stanford_cars", {}),
    "cifar10": ("uoft-cs/cifar10", {"image": "img"}),
    "dtd": ("tanganke/dtd", {}),
    "eurosat": ("tanganke/eurosat", {}),
    "fgvc": ("Multimodal-Fatima/FGVC_Aircraft_train", {}),
    "resisc45": ("tanganke/resisc45", {}),
    "cifar100": ("uoft-cs/cifar100", {"image": "img", "label": "fine_label"}),
}


def instructed(ask: str, word: str, options: Sequence[str], answer: int) -> Row:
    """A question as LLM-Adapters puts it: the options numbered in the text, their numbers as the answers."""
    listed = " ".join(f"{word.capitalize()}{number}: {text}" for number, text in enumerate(options, 1))
    choices = [f"{word}{number}" for number, _ in enumerate(options, 1)]
    return {
        "question": f"{ask}\n\n{listed}\n\nAnswer format: {'/'.join(choices)}",
        "choices": choices,
        "answer": answer,
    }


def commonsense(row: Row) -> Row:
    """A row of commonsense 170k, whose instruction ends in the answers it allows."""
    choices = row["instruction"].rsplit("Answer format:", 1)[1].strip().split("/")
    return {"question": row["instruction"], "choices": choices, "answer": choices.index(row["answer"])}


def boolq(row: Row) -> Row:
    ask = f"Please answer the following question with true or false, question: {row['question']}?"
    return {
        "question": f"{ask}\n\nAnswer format: true/false",
        "choices": ["true", "false"],
        "answer": int(not row["answer"]),
    }


def piqa(row: Row) -> Row:
    ask = f"Please choose the correct solution to the question: {row['goal']}"
    return instructed(ask, "solution", [row["sol1"], row["sol2"]], row["label"])


def siqa(row: Row) -> Row:
    ask = f"Please choose the correct answer to the question: {row['context']} {row['question']}"
    return instructed(ask, "answer", [row[f"answer{letter}"] for letter in "ABC"], int(row["label"]) - 1)


def hellaswag(row: Row) -> Row:
    ask = f"Please choose the correct ending to complete the given sentence: {row['activity_label']}: {row['ctx']}"
    return instructed(ask, "ending", row["endings"], int(row["label"]))


def winogrande(row: Row) -> Row:
    ask = f"Please choose the correct answer to fill in the blank to complete the given sentence: {row['sentence']}"
    return instructed(ask, "option", [row["option1"], row["option2"]], int(row["answer"]) - 1)


def lettered(row: Row) -> Row:
    """A question of ARC, CommonsenseQA or OpenBookQA, whose answer is the letter of a choice."""
    choices = row["choices"]
    return {
        "question": row.get("question") or row["question_stem"],
        "choices": choices["text"],
        "answer": choices["label"].index(row["answerKey"]),
    }


def multiple_choice(row: Row) -> Row:
    found = lettered(row)
    ask = f"Please choose the correct answer to the question: {found['question']}"
    return instructed(ask, "answer", found["choices"], found["answer"])


def math_problem(row: Row) -> Row:
    """A row of MetaMathQA or of GSM8K."""
    return {
        "prompt": f"{row.get('query') or row['question']}\n\nAnswer: ",
        "text": row.get("response") or row["answer"],
    }


COMMONSENSE_TESTS: Mapping[str, Test] = {
    "boolq": Test("google/boolq", "validation", boolq),
    "piqa": Test("ybisk/piqa", "validation", piqa),
    "siqa": Test("allenai/social_i_qa", "validation", siqa),
    "hellaswag": Test("Rowan/hellaswag", "validation", hellaswag),
    "winogrande": Test("allenai/winogrande:winogrande_xl", "validation", winogrande),
    "arc-easy": Test("allenai/ai2_arc:ARC-Easy", "test", multiple_choice),
    "arc-challenge": Test("allenai/ai2_arc:ARC-Challenge", "test", multiple_choice),
    "openbookqa": Test("allenai/openbookqa:main", "test", multiple_choice),
}
FGVC_TEST = {"fgvc": Test("Multimodal-Fatima/FGVC_Aircraft_test", "test")}

PAPER: Mapping[str, Experiment] = {
    **{
        f"vit-{name}": Experiment(**VIT_B, data=data, hub_columns=columns, tests=FGVC_TEST if name == "fgvc" else {})
        for name, (data, columns) in IMAGE_SETS.items()
    },
    "llama-commonsense": Experiment(
        **LLAMA,
        task="multiple-choice",
        data="zwhe99/commonsense_170k",
        from_hub=commonsense,
        tests=COMMONSENSE_TESTS,
        settings={**LLAMA_SETTINGS, "max_length": 256},
    ),
    "llama-math": Experiment(
        **LLAMA,
        task="text-generation",
        data="meta-math/MetaMathQA",
        from_hub=math_problem,
        tests={"gsm8k": Test("openai/gsm8k:main", "test", math_problem)},
        answer_of=last_number,
        settings={**LLAMA_SETTINGS, "max_length": 512},
    ),
}
