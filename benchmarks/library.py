"""One `compress()` as a user of the library runs it: `python -m benchmarks.library MODEL DATA OUTPUT CONFIG`."""

from __future__ import annotations

import sys
import time

from jactus_core.compression import compress
from jactus_core.config import CompressionConfig

if __name__ == "__main__":
    model, data, output, config = sys.argv[1:]
    began = time.perf_counter()
    compress(model, data, output, CompressionConfig.model_validate_json(config))
    print(time.perf_counter() - began)
