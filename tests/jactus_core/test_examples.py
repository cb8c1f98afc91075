from __future__ import annotations

import pickle
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from jactus_core.errors import (
    EmptyDataset,
    InvalidDataset,
    MissingColumn,
    OneClassDataset,
    UndecodableImage,
    UnknownLabel,
)
from jactus_core.examples import Examples, Passage, Picture, Question, read_examples, split
from jactus_core.sources import Source, open_source
from jactus_core.tasks import TaskName
from tests.jactus_core.images import encoded, png


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def only(data: Any, task: TaskName, columns: Mapping[str, str] | None = None) -> Examples:
    """The examples of a source that sets none apart for evaluation."""
    examples, evaluation = read_examples(data, task, columns)
    assert evaluation is None
    return examples


# Classes


def test_texts_and_their_classes_are_read_from_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "question,intent,more\nhi, greet,1\nbye,leave,2\n")

    assert only(file, "text-classification", {"text": "question", "label": "intent"}) == Examples(
        "text-classification", ["hi", "bye"], [0, 1], ["greet", "leave"]
    )


def test_numeric_labels_are_ordered_by_value_and_before_words() -> None:
    rows = [{"text": "x", "label": label} for label in (10, "b", 2, -3, "--5", "a", 1, "9" * 256)]

    assert only(rows, "text-classification").label_names == ["-3", "1", "2", "10", "--5", "9" * 256, "a", "b"]


def test_labels_of_one_value_are_always_in_the_same_order() -> None:
    code = (
        "from jactus_core.examples import read_examples\n"
        "rows = [{'text': 'x', 'label': label} for label in ('1', '01', '001')]\n"
        "print(read_examples(rows, 'text-classification')[0].label_names)"
    )
    orders = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }

    assert orders == {b"['001', '01', '1']\n"}


@pytest.mark.parametrize(
    ("rows", "error", "param", "message"),
    [
        ([], EmptyDataset, "file", "no rows"),
        ([{"body": "x", "label": 1}], MissingColumn, "columns.text", "Row 1 has no column 'text'; the columns are 'b"),
        ([{"text": "x"}], MissingColumn, "columns.label", "Row 1 has no column 'label'; the columns are 'text'"),
        ([{}], MissingColumn, "columns.text", "the columns are none"),
        ([{"text": "x", "label": 1}] * 2, OneClassDataset, "file", "All 2 rows have the label '1'"),
        ([{"text": "x", "label": 1}, {"text": " ", "label": 0}], InvalidDataset, "text", "Row 2: column 'text' must"),
        ([{"text": 3, "label": 1}], InvalidDataset, "text", "Row 1: column 'text' must hold a non-empty text"),
        ([{"text": "x", "label": None}], InvalidDataset, "label", "Row 1: column 'label' must hold a label"),
        ([{"text": "x", "label": [1]}], InvalidDataset, "label", "Row 1: column 'label' must hold a label"),
        ([{"text": "x", "label": " "}], InvalidDataset, "label", "Row 1: column 'label' must hold a label"),
        ([{"text": "x", "label": f"n{i}"} for i in range(1001)], InvalidDataset, "columns.label", "1001 different"),
    ],
)
def test_rows_that_no_classifier_can_learn_from_are_refused(
    rows: list[dict[str, Any]], error: type[InvalidDataset], param: str, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        read_examples(rows, "text-classification")
    assert type(caught.value) is error
    assert caught.value.param == param


def test_the_first_faults_are_told_together(tmp_path: Path) -> None:
    rows = ["{", "[1]", '{"text": "", "label": 1}', '{"text": "x"}', '{"text": "x", "label": 0}', *["{}"] * 1200, "?"]
    with pytest.raises(InvalidDataset) as caught:
        read_examples(write(tmp_path / "a.jsonl", "\n".join(rows)), "text-classification")

    places = re.findall(r"Row \d+", caught.value.message)
    assert places == ["Row 1", "Row 2", "Row 3", "Row 4", "Row 6"]
    assert caught.value.message.endswith(" And 1,200 more.")
    assert (type(caught.value), caught.value.param) == (InvalidDataset, "file")
    assert len(caught.value.message) < 500


def test_faults_that_would_be_too_much_to_read_are_only_counted() -> None:
    rows = [
        {"text": "x", "label": 1, "a column with a long name " * 8: 1},
        {"text": "x"},
        {"x" * 400: ""},
        {"text": ""},
    ]
    with pytest.raises(MissingColumn) as caught:
        read_examples([{}, *rows], "text-classification")

    told = "Row 1 has no column 'text'; the columns are none. Row 3 has no column 'label'; the columns are 'text'."
    assert caught.value.message == f"{told} Row 5: column 'text' must hold a non-empty text. And 1 more."
    assert caught.value.param == "columns.text"


def test_a_file_that_breaks_off_is_told_after_the_faults_before(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b"text,label\n,1\n\0")
    with pytest.raises(InvalidDataset, match=r"^Row 2: .* non-empty text\. Row 3 holds a null character") as caught:
        read_examples(file, "text-classification")
    assert caught.value.param == "text"


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"text": "a\0b", "label": 1}, "text"),
        ({"text": "a", "label": "\0b"}, "label"),
        ({"text": "a", "label": "\ud800"}, "label"),
        ({"text": "a", "label": "x" * 257}, "label"),
    ],
)
def test_what_cannot_be_stored_or_encoded_is_refused(row: dict[str, Any], column: str) -> None:
    with pytest.raises(InvalidDataset, match=f"Row 2: column '{column}' must hold a"):
        read_examples([{"text": "x", "label": 0}, row], "text-classification")


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("text-generation", {"text": "x", "prompt": "\0"}),
        ("multiple-choice", {"question": "\0?", "choices": ["a", "b"], "answer": 0}),
        ("multiple-choice", {"question": "?", "choices": ["a", "b\0"], "answer": 0}),
    ],
)
def test_no_task_takes_null_characters(task: TaskName, row: dict[str, Any]) -> None:
    with pytest.raises(InvalidDataset, match="a text without null characters"):
        read_examples([row], task)


def test_a_short_csv_row_has_no_label(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="Row 3: column 'label'"):
        read_examples(write(tmp_path / "a.csv", "text,label\nx,1\ny\n"), "text-classification")


def test_a_role_that_the_task_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidDataset, match="'answer' is nothing that text-generation reads") as caught:
        read_examples([{"text": "x"}], "text-generation", {"answer": "a"})
    assert caught.value.param == "columns"


def test_the_evaluation_rows_have_the_classes_of_the_training_rows() -> None:
    train = [{"text": "x", "label": label} for label in ("c", "a", "b")]
    splits = {"train": train, "test": [{"text": "y", "label": "c"}, {"text": "z", "label": "b"}]}
    examples, evaluation = read_examples(splits, "text-classification")

    assert examples.labels == [2, 0, 1]
    assert evaluation == Examples("text-classification", ["y", "z"], [2, 1], ["a", "b", "c"])


def test_two_sources_make_one() -> None:
    train = open_source([{"text": "x", "label": 0}, {"text": "y", "label": 1}])
    _, evaluation = read_examples(
        Source(train.train, open_source([{"text": "z", "label": 1}]).train), "text-classification"
    )

    assert evaluation is not None
    assert evaluation.labels == [1]


def test_an_evaluation_label_that_was_never_seen_is_named() -> None:
    train = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    splits = {"train": train, "test": [train[0], {"text": "z", "label": "c"}]}
    with pytest.raises(UnknownLabel, match="Row 2 of 'test': the training rows have no label 'c'; they have 'a', 'b'"):
        read_examples(splits, "text-classification")


def test_an_evaluation_split_without_rows_is_refused() -> None:
    splits = {"train": [{"text": "x"}], "validation": []}
    with pytest.raises(EmptyDataset, match="in its split for evaluation"):
        read_examples(splits, "text-generation")


# Images


def image_folder(root: Path) -> Path:
    for name in ("train/cat/1.png", "train/dog/2.png", "test/dog/3.png"):
        write(root / name, png())
    return root


def test_images_of_a_folder_are_decoded_when_asked_for(tmp_path: Path) -> None:
    examples, evaluation = read_examples(image_folder(tmp_path), "image-classification")

    assert (examples.labels, examples.label_names) == ([0, 1], ["cat", "dog"])
    assert [picture.name for picture in examples.items] == ["train/cat/1.png", "train/dog/2.png"]
    assert examples.items[0].open().getpixel((0, 0)) == (9, 9, 9)
    assert evaluation is not None
    assert evaluation.labels == [1]


def test_many_images_are_all_checked_and_the_first_broken_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(600):
            archive.writestr(f"{number % 2}/{number:03}.png", png() if number not in (555, 599) else png()[:50])

    with pytest.raises(UndecodableImage, match=r"Image '1/555\.png' cannot be decoded.* Image '1/599\.png' cannot"):
        read_examples(file, "image-classification")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "'cat/x.png' is no image"),
        (b"", "'cat/x.png' is no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "is no image"),
        (png()[:50], "'cat/x.png' cannot be decoded"),
        (encoded(Image.effect_noise((64, 64), 9), "JPEG")[:900], "'cat/x.png' cannot be decoded: .*truncated"),
    ],
    ids=["text", "nothing", "PostScript", "half a PNG", "half a JPEG"],
)
def test_a_file_that_is_no_whole_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    write(image_folder(tmp_path / "a") / "train/cat/0.png", content)
    with pytest.raises(UndecodableImage, match=message.replace("cat/x", "train/cat/0")):
        read_examples(tmp_path / "a", "image-classification")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("pixels", [40, 99])
def test_an_image_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    picture = Picture("a.png", png(size=(10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture.open()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)  # PIL itself only warns below the double
    with pytest.raises(UndecodableImage, match=r"'a\.png' cannot be decoded: .* pixels"):
        picture.open()


def test_an_image_is_upright_and_rgb_whatever_it_was() -> None:
    image = Image.new("L", (3, 1))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = Picture("a", encoded(image, exif=exif)).open()
    frames = encoded(Image.new("P", (2, 2)), "GIF", save_all=True, append_images=[Image.new("P", (2, 2), 1)])

    assert (turned.mode, turned.size) == ("RGB", (1, 3))
    assert turned.getpixel((0, 0)) == (255, 255, 255)
    for content in (Image.new("1", (2, 2)), Image.new("CMYK", (2, 2)), Image.new("RGBA", (2, 2)), frames):
        assert Picture("b", content).open().mode == "RGB"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_the_usual_formats_can_be_read(format: str) -> None:
    assert Picture("a", encoded(Image.new("RGB", (4, 5)), format)).open().size == (4, 5)


def test_a_picture_can_be_sent_to_another_process(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/1.png", png((1, 2, 3)))
        archive.writestr("b/2.png", png())
    picture = only(tmp_path / "a.zip", "image-classification").items[0]

    assert pickle.loads(pickle.dumps(picture)).open().getpixel((0, 0)) == (1, 2, 3)  # noqa: S301


def test_images_in_the_rows_may_be_paths_bytes_or_pictures(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", png((1, 1, 1)))
    contents = [
        str(file),
        file,
        png((1, 1, 1)),
        {"bytes": png((1, 1, 1)), "path": "elsewhere.png"},
        {"bytes": None, "path": str(file)},
        Picture("mine", png((1, 1, 1))),
        Image.new("RGB", (2, 2), (1, 1, 1)),
    ]
    rows = [{"photo": content, "label": number} for number, content in enumerate(contents)]
    items = only(rows, "image-classification", {"image": "photo"}).items

    assert [item.open().getpixel((0, 0)) for item in items] == [(1, 1, 1)] * len(contents)
    assert [item.name for item in items[2:6]] == ["row 3", "row 4 (elsewhere.png)", f"row 5 ({file})", "mine"]


def test_images_of_a_hub_dataset_are_read() -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["dog", "cat"]))
    rows = {"image": [Image.new("RGB", (2, 2), (i, 0, 0)) for i in range(2)], "label": [1, 0]}
    data = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features=features))
    examples = only(data, "image-classification")

    assert (examples.labels, examples.label_names) == ([0, 1], ["cat", "dog"])
    assert examples.items[1].open().getpixel((0, 0)) == (1, 0, 0)


def test_paths_in_a_file_begin_at_its_folder_and_stay_inside(tmp_path: Path) -> None:
    write(tmp_path / "set/images/1.png", png())
    secret = write(tmp_path / "secret.png", png())
    (tmp_path / "set/link.png").symlink_to(secret)
    file = tmp_path / "set/a.csv"

    write(file, "image,label\nimages/1.png,0\nimages/../images/1.png,1\n")
    assert len(only(file, "image-classification")) == 2

    for path in ("../secret.png", str(secret), "link.png", "images/../../secret.png"):
        write(file, f"image,label\nimages/1.png,0\n{path},1\n")
        with pytest.raises(InvalidDataset, match="Row 3: column 'image' must hold a path inside the folder"):
            read_examples(file, "image-classification")

    parquet.write_table(pyarrow.Table.from_pylist([{"image": "x\0.png", "label": 0}]), tmp_path / "set/a.parquet")
    with pytest.raises(InvalidDataset, match="Row 1: column 'image' must hold a path inside the folder"):
        read_examples(tmp_path / "set/a.parquet", "image-classification")


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "image,label\nno.png,0\nno.png,1\n")
    with pytest.raises(UndecodableImage, match=r"'row 2 \(no.png\)' cannot be read: No such file"):
        read_examples(file, "image-classification")


@pytest.mark.parametrize("content", [None, "", 3, [1, 2], {"bytes": None, "path": None}])
def test_a_cell_without_an_image_is_refused(content: Any) -> None:
    with pytest.raises(InvalidDataset, match="Row 1: column 'image' must hold an image"):
        read_examples([{"image": content, "label": 0}], "image-classification")


# Questions

LETTERED = {"text": ["3", "1", "2"], "label": ["1", "2", "3"]}  # as ARC has them, numbers on both sides


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["red", "blue"], 1, 1),
        (("red", "blue"), 0, 0),
        (["red", "blue"], "B", 1),
        (["red", "blue"], "red", 0),
        (["A", "B"], "B", 1),
        (["2", "1"], "1", 1),
        (LETTERED, "1", 0),
        (LETTERED, "3", 2),
        (LETTERED, 2, 2),
        ({"text": ["x", "y"], "label": ["A", "B"]}, "y", 1),
        ({"text": ["x", "y"], "label": [1, 2]}, 1, 0),
    ],
)
def test_the_right_choice_is_given_by_index_name_or_text(choices: Any, answer: Any, right: int) -> None:
    examples = only([{"question": "Which?", "choices": choices, "answer": answer}], "multiple-choice")
    texts = tuple(choices["text"] if isinstance(choices, dict) else choices)

    assert examples == Examples("multiple-choice", [Question("Which?", texts)], [right], [])


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (["red", "blue"], 2, r"column 'answer' must hold the index \(0 to 1\), .* not 2"),
        (["red", "blue"], -1, "'answer'"),
        (["red", "blue"], True, "'answer' .* not True"),
        (["red", "blue"], 1.0, "'answer'"),
        (["red", "blue"], None, "'answer'"),
        (["red", "blue"], "C", "'answer' .* not 'C'"),
        (["red", "blue"], "", "'answer'"),
        (["x"] * 27, "", "'answer'"),
        (["B", "A"], "A", "'answer'"),
        (["red", "red"], "red", "'answer'"),
        ({"text": ["x", "y"], "label": ["C", "D"]}, "A", "'answer'"),
        (["red"], 0, "column 'choices' must hold a list of at least two"),
        ("red", 0, "'choices'"),
        (["red", ""], 0, "'choices'"),
        (["red", 3], 0, "'choices'"),
        (None, 0, "'choices'"),
        ({"text": ["x", "y"], "label": ["A"]}, "A", "as many entries in 'text' as in 'label'"),
        ({"text": ["x", "y"]}, 0, "as many entries"),
    ],
)
def test_a_question_without_one_right_choice_is_refused(choices: Any, answer: Any, message: str) -> None:
    with pytest.raises(InvalidDataset, match=f"Row 1: .*{message}|Row 1: {message}"):
        read_examples([{"question": "Which?", "choices": choices, "answer": answer}], "multiple-choice")


def test_questions_of_the_hub_are_read_with_their_own_names() -> None:
    rows = [{"stem": "?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}]
    examples = only(datasets.Dataset.from_list(rows), "multiple-choice", {"question": "stem", "answer": "answerKey"})

    assert (examples.items, examples.labels) == ([Question("?", ("x", "y"))], [1])


# Passages


def test_the_prompt_of_a_passage_is_there_or_not() -> None:
    rows = [{"text": "a"}, {"text": "b", "prompt": "say b: "}, {"text": "c", "prompt": None}]

    assert only(rows, "text-generation") == Examples(
        "text-generation", [Passage("", "a"), Passage("say b: ", "b"), Passage("", "c")], [0, 0, 0], []
    )


def test_a_prompt_column_that_is_named_must_be_there() -> None:
    rows = [{"question": "1 + 1?", "answer": "2"}]
    columns = {"prompt": "question", "text": "answer"}

    assert only(rows, "text-generation", columns).items == [Passage("1 + 1?", "2")]
    with pytest.raises(MissingColumn, match="Row 1 has no column 'query'") as caught:
        read_examples(rows, "text-generation", {**columns, "prompt": "query"})
    assert caught.value.param == "columns.prompt"
    with pytest.raises(InvalidDataset, match="Row 1: column 'n' must hold a text"):
        read_examples([{"text": "x", "n": 3}], "text-generation", {"prompt": "n"})


# All tasks


def test_the_split_is_stratified_reproducible_and_complete() -> None:
    data = Examples("text-classification", [str(i) for i in range(110)], [0] * 100 + [1] * 9 + [2], ["a", "b", "c"])
    train, held_out = split(data, 0.2, seed=5)

    assert Counter(held_out.labels) == {0: 20, 1: 2}
    assert train.counts() == {"a": 80, "b": 7, "c": 1}
    assert sorted(train.items + held_out.items, key=int) == data.items
    assert held_out.items[-3:] == ["98", "100", "103"]  # as ever: old runs can be repeated
    assert split(data, 0.2, seed=5) == (train, held_out)
    assert split(data, 0.2, seed=6) != (train, held_out)


def test_without_classes_the_split_is_a_share_of_the_rows() -> None:
    questions = Examples("multiple-choice", list(range(10)), [0, 1, 2, 3, 3, 3, 3, 3, 3, 3], [])
    train, held_out = split(questions, 0.3, seed=0)

    assert (len(train), len(held_out)) == (7, 3)
    assert sorted(train.items + held_out.items) == questions.items
    for fraction in (0.001, 0.999):
        assert all(split(questions.select([0, 1]), fraction, seed=0))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (Examples("text-classification", ["x", "y"], [0, 1], ["a", "b"]), "No class has two rows"),
        (Examples("text-generation", [Passage("", "x")], [0], []), "There are not two rows"),
    ],
)
def test_single_rows_cannot_be_split(examples: Examples, message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        split(examples, 0.5, seed=0)


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    variants: list[tuple[list[dict[str, str]], TaskName]] = [
        (rows, "text-classification"),
        (rows[::-1], "text-classification"),
        ([{**row, "label": row["label"].upper()} for row in rows], "text-classification"),
        ([rows[0], {"text": "y ", "label": "b"}], "text-classification"),
        ([*rows, rows[0]], "text-classification"),
        (rows, "text-generation"),
        ([{**row, "prompt": "p"} for row in rows], "text-generation"),
    ]
    prints = [only(rows, task).fingerprint() for rows, task in variants]
    file = write(tmp_path / "a.csv", "text,label\nx,a\ny,b\n")

    assert len(set(prints)) == len(variants)
    assert only(file, "text-classification").fingerprint() == prints[0]


def test_the_fingerprint_of_images_is_that_of_their_files(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder))
    as_folder, as_zip = (read_examples(data, "image-classification")[0] for data in (folder, tmp_path / "b.zip"))
    before = as_folder.fingerprint()

    assert as_zip.fingerprint() == before
    write(folder / "train/cat/1.png", png((9, 9, 8)))
    assert as_folder.fingerprint() != before
    in_memory = [Picture("x", Image.new("RGB", (2, 2), colour)).sha256() for colour in ("red", "blue", "red")]
    assert in_memory[0] == in_memory[2] != in_memory[1]


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys\nfrom jactus_core.examples import read_examples\n"
        "read_examples([{'text': 'x'}], 'text-generation')\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert done.stdout == "[]\n"
