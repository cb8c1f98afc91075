"""Whether the API of this container is ready, for its health check: `python -m api.alive`."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

try:
    urllib.request.urlopen(f"http://127.0.0.1:{os.environ.get('JACTUS_PORT', '8000')}/readyz", timeout=8)
except urllib.error.HTTPError as error:
    sys.exit(error.read().decode(errors="replace"))
except OSError as error:
    sys.exit(str(error))
