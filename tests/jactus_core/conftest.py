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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the kinds of models that were proven, for whoever reads the log."""
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", ())]
    proven = [name.removesuffix("]").split("[")[1] for name in passed if "test_architectures.py::" in name]
    if proven:
        terminalreporter.section("compressed, saved, and loaded with equal logits in new processes")
        terminalreporter.line(", ".join(proven))
