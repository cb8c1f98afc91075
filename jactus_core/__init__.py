"""JACTUS: joint adaptation and compression of transformers with a task-aware union of subspaces.

    from jactus_core import compress
    result = compress("sentence-transformers/all-MiniLM-L6-v2", "reviews.csv", "small", budgets=(0.8, 0.5))

Importing this package teaches transformers to load the checkpoints; torch is imported only when it is needed.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from jactus_core.compression import CompressionResult, compress
    from jactus_core.config import CompressionConfig
    from jactus_core.errors import JactusError
    from jactus_core.estimation import Estimate, estimate
    from jactus_core.export import export
    from jactus_core.models import find_model
    from jactus_core.scoring import score

__version__ = "0.1.0"
__all__ = [
    "CompressionConfig",
    "CompressionResult",
    "Estimate",
    "JactusError",
    "compress",
    "estimate",
    "export",
    "find_model",
    "score",
]
_HOMES = {
    "CompressionConfig": "config",
    "CompressionResult": "compression",
    "Estimate": "estimation",
    "JactusError": "errors",
    "compress": "compression",
    "estimate": "estimation",
    "export": "export",
    "find_model": "models",
    "score": "scoring",
}
PATIENCE = "3000"
"""How often a thread of PyTorch's looks whether the others are done before it gives its processor away.

By the default of libgomp, a hundred times as much, threads beside any busy process mostly wait for each other.
"""
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = PATIENCE  # read when torch is imported


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'jactus_core' has no attribute '{name}'")
    found = getattr(import_module(f"jactus_core.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _register(_: Any) -> None:
    """Register the model type once transformers' auto classes exist, now or later."""
    import jactus_core.modeling_jactus  # noqa: F401
