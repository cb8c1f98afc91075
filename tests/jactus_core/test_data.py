from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from jactus_core.data import LabelledTexts, as_texts, read_texts, split
from jactus_core.errors import InvalidDataset, MissingColumn, OneClassDataset

CSV = 'text,label\nfine,1\n"two\nlines",0\n'


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_and_json_lines_give_the_same_rows(tmp_path: Path) -> None:
    csv = read_texts(write(tmp_path / "a.csv", CSV), "csv")
    json = read_texts(
        write(tmp_path / "a.jsonl", '{"text": "fine", "label": 1}\n\n{"text": "two\\nlines", "label": 0}\n'), "jsonl"
    )

    assert csv == json == LabelledTexts(["fine", "two\nlines"], [1, 0], ["0", "1"])


def test_a_byte_order_mark_and_other_column_names_are_fine(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b"\xef\xbb\xbfquestion,intent,more\nhi,greet,1\nbye,leave,2\n")

    assert read_texts(file, "csv", "question", "intent").label_names == ["greet", "leave"]


def test_numeric_labels_are_ordered_by_value() -> None:
    assert as_texts([{"text": "x", "label": label} for label in (10, 2, 1)]).label_names == ["1", "2", "10"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.csv", "", InvalidDataset, "no rows"),
        ("a.csv", "text,label\n", InvalidDataset, "no rows"),
        ("a.csv", "body,label\nx,1\n", MissingColumn, "no column 'text'; the columns are 'body', 'label'"),
        ("a.csv", "text,label\nx,1\ny,1\n", OneClassDataset, "All 2 rows have the label '1'"),
        ("a.csv", "text,label\nx,1\n ,0\n", InvalidDataset, "Row 3: column 'text'"),
        ("a.csv", "text,label\nx,1\ny,\n", InvalidDataset, "Row 3: column 'label'"),
        ("a.csv", "text,label\nx,1\ny\n", InvalidDataset, "Row 3: column 'label'"),
        ("a.csv", "text,label\nx,1,2\n", InvalidDataset, "Row 2 has more fields"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", InvalidDataset, "not UTF-8"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{oops\n', InvalidDataset, "Row 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", InvalidDataset, "Row 1 must be a JSON object"),
        ("a.jsonl", '{"text": 3, "label": 1}\n', InvalidDataset, "Row 1: column 'text'"),
        ("a.jsonl", "[" * 100_000, InvalidDataset, "Row 1 is not valid JSON"),
        ("a.txt", "x", InvalidDataset, "must end in .csv, .jsonl"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_and_the_reason(
    tmp_path: Path, name: str, content: str | bytes, error: type[InvalidDataset], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        as_texts(write(tmp_path / name, content))
    assert type(caught.value) is error


def test_a_column_of_free_text_is_no_label() -> None:
    with pytest.raises(InvalidDataset, match="1001 different values"):
        as_texts([{"text": "x", "label": f"name {i}"} for i in range(1001)])


def test_the_split_is_stratified_reproducible_and_complete() -> None:
    data = LabelledTexts([str(i) for i in range(110)], [0] * 100 + [1] * 9 + [2], ["a", "b", "c"])
    train, held_out = split(data, 0.2, seed=5)

    assert Counter(held_out.labels) == {0: 20, 1: 2}
    assert sorted(train.texts + held_out.texts, key=int) == data.texts
    assert split(data, 0.2, seed=5) == (train, held_out)
    assert split(data, 0.2, seed=6) != (train, held_out)


def test_a_set_of_single_rows_cannot_be_split() -> None:
    with pytest.raises(InvalidDataset, match="No class has two rows"):
        split(LabelledTexts(["x", "y"], [0, 1], ["a", "b"]), 0.5, seed=0)
