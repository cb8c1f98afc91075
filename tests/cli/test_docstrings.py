from __future__ import annotations

from collections import Counter
from pathlib import Path

from cli.docstrings import LARGEST_PACKAGE, PACKAGES, build_dataset
from jactus_core.examples import read_examples


def test_the_standard_library_gives_a_clean_dataset_of_ten_packages(tmp_path: Path) -> None:
    file = tmp_path / "docstrings.jsonl"
    rows = build_dataset(file)
    texts, _ = read_examples(file, "text-classification")

    assert rows == len(texts) > 2000
    assert len(texts.label_names) == PACKAGES
    assert {"asyncio", "email", "logging"} <= set(texts.label_names)
    assert max(Counter(texts.labels).values()) <= LARGEST_PACKAGE
    assert len(set(texts.items)) == len(texts), "a text of two packages has no answer"
