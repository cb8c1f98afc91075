from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from tests.jactus_core.architectures import Compressed, architectures


@pytest.fixture(scope="session")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compressed]:
    """Any of `architectures` by name, compressed once in a session to 60 % of its linear layers."""
    torch.set_num_threads(1)  # many wait for each other where models are tiny
    return cache(lambda name: architectures[name].compressed(tmp_path_factory.mktemp(name)))
