from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import write_tiny_bert

pytest_plugins = ["tests.service_fixtures"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT in a folder of its own, whose parent can serve as a model root."""
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")
