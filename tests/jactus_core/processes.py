"""Python in a process of its own, with the package or as if it were not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

WITH_PACKAGE = "import jactus_core\n"
WITHOUT_PACKAGE = "import sys; sys.modules['jactus_core'] = None\n"


def in_new_process(code: str, *arguments: Any, **environment: Any) -> Any:
    """What `code` prints as its last line, as JSON; it finds `arguments` in the list of the same name."""
    command = [sys.executable, "-c", f"import json, sys; arguments = json.loads(sys.argv[1])\n{code}"]
    quiet = {"OMP_NUM_THREADS": "1", **{name: str(value) for name, value in environment.items()}}
    answer = subprocess.run(
        [*command, json.dumps(arguments, default=str)],
        capture_output=True,
        text=True,
        env=os.environ | quiet,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.strip().splitlines()[-1])
