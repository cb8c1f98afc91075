from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.tiny import write_tiny_bert

pytest_plugins = ["tests.service_fixtures"]


def pytest_collection_finish() -> None:
    """Leave what the imported libraries hold out of every later collection: each training asks for a whole one."""
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT in a folder of its own, whose parent can serve as a model root."""
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")
