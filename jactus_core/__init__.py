"""JACTUS: joint adaptation and compression of transformers with a task-aware union of subspaces.

    from jactus_core import compress
    result = compress("sentence-transformers/all-MiniLM-L6-v2", "reviews.csv", "small", budgets=(0.8, 0.5))

Importing this package teaches transformers to load the checkpoints; torch is imported only when it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from jactus_core.compression import compress
    from jactus_core.config import CompressionConfig

__version__ = "0.1.0"
__all__ = ["CompressionConfig", "compress"]


def __getattr__(name: str) -> Any:
    if name == "compress":
        from jactus_core.compression import compress

        return compress
    if name == "CompressionConfig":
        from jactus_core.config import CompressionConfig

        return CompressionConfig
    raise AttributeError(f"module 'jactus_core' has no attribute '{name}'")


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _register(_: Any) -> None:
    """Register the model type once transformers' auto classes exist, now or later."""
    import jactus_core.modeling_jactus  # noqa: F401
