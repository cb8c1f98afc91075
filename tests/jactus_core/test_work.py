from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jactus_core import work as work_module
from jactus_core.work import WorkFolder, fingerprint

FACTS: dict[str, Any] = {"rank": 3, "floors": [1e-4, 0.1], "none": None}


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    return WorkFolder(tmp_path / "deep" / "work")


def tensors(value: float) -> dict[str, Tensor]:
    return {"whole": torch.full((2, 3), value), "strided": torch.arange(6.0, dtype=torch.float64).view(2, 3).T * value}


class Killed(Exception):
    """Stands in for the end of the process."""


def test_what_was_kept_is_recalled_by_another_folder_object(work: WorkFolder) -> None:
    work.keep("statistics", "key", FACTS, tensors(2.0))
    again = WorkFolder(work.folder)

    assert again.recall("statistics", "key") == FACTS
    found = again.tensors("statistics")
    assert found.keys() == tensors(2.0).keys()
    assert all(torch.equal(found[part], tensor) for part, tensor in tensors(2.0).items())
    assert all(found[part].dtype == tensor.dtype for part, tensor in tensors(2.0).items())


def test_nothing_is_recalled_under_another_key_or_name(work: WorkFolder) -> None:
    assert work.recall("statistics", "key") is None
    work.keep("statistics", "key", FACTS)

    assert work.recall("statistics", "other") is None
    assert work.recall("other", "key") is None
    assert work.recall("statistics", "key") == FACTS


def test_keeping_again_replaces_facts_tensors_and_key(work: WorkFolder) -> None:
    work.keep("statistics", "old", FACTS, tensors(1.0))
    work.keep("statistics", "new", {"rank": 4}, tensors(5.0))

    assert work.recall("statistics", "old") is None
    assert work.recall("statistics", "new") == {"rank": 4}
    assert torch.equal(work.tensors("statistics")["whole"], torch.full((2, 3), 5.0))


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("at", ["tensors", "seal"])
def test_a_result_cut_short_is_void_and_can_be_kept_again(
    work: WorkFolder, monkeypatch: pytest.MonkeyPatch, earlier: bool, at: str
) -> None:
    """Killed while the tensors are written, or once they are there and the seal is not in its place."""
    if earlier:
        work.keep("statistics", "key", {"rank": 1}, tensors(1.0))

    def killed(*args: Any) -> None:
        if at == "tensors":
            Path(args[1]).write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(*((work_module, "save_file", killed) if at == "tensors" else (Path, "replace", killed)))
        with pytest.raises(Killed):
            work.keep("statistics", "key", FACTS, tensors(2.0))

    assert (work.folder / "statistics.safetensors").exists()
    assert WorkFolder(work.folder).recall("statistics", "key") is None
    work.keep("statistics", "key", FACTS, tensors(2.0))
    assert work.recall("statistics", "key") == FACTS
    assert torch.equal(work.tensors("statistics")["whole"], torch.full((2, 3), 2.0))


def test_tensors_without_a_seal_are_void(work: WorkFolder) -> None:
    work.keep("statistics", "key", FACTS, tensors(2.0))
    (work.folder / "statistics.json").rename(work.folder / "statistics.json.part")

    assert work.recall("statistics", "key") is None


def test_dropping_forgets_one_result_only(work: WorkFolder) -> None:
    work.keep("one", "key", FACTS, tensors(1.0))
    work.keep("other", "key", FACTS, tensors(2.0))

    work.drop("one")
    work.drop("never kept")

    assert work.recall("one", "key") is None
    assert work.recall("other", "key") == FACTS
    assert sorted(path.name for path in work.folder.iterdir()) == ["other.json", "other.safetensors"]


def test_a_drop_cut_short_forgets_all_the_same(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    work.keep("statistics", "key", FACTS, tensors(2.0))
    unlink = Path.unlink

    def once(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", once)
        with pytest.raises(Killed):
            work.drop("statistics")

    assert (work.folder / "statistics.safetensors").exists()
    assert work.recall("statistics", "key") is None


def test_removing_leaves_nothing(work: WorkFolder) -> None:
    work.remove()
    work.keep("one", "key", FACTS, tensors(1.0))
    work.remove()

    assert not work.folder.exists()
    assert work.recall("one", "key") is None


def test_fingerprints_tell_content_apart_and_not_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2]}, "x") == fingerprint({"b": [2], "a": 1}, "x")
    prints = [fingerprint(*parts) for parts in (("a", "b"), ("b", "a"), ("ab",), (["a", "b"],), ({"a": "b"},), ())]
    assert len(set(prints)) == len(prints)
