"""Write .env for docker compose, with random secrets: `python3 docker/make_env.py`. One that is there stays."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / ".env"
TEXT = """\
# What `docker compose` starts the service with. Made by docker/make_env.py; every secret is random. Keep a copy of this
# file elsewhere: without JACTUS_SECRET_KEY no API key is valid any more, and no stored token can be read.

# The key that is accepted from the start, with every right. Make keys for others with it: POST /v1/keys.
JACTUS_API_KEY=jactus_{api_key}

# API keys are hashed and stored tokens sealed under this one.
JACTUS_SECRET_KEY={secret_key}

# Passwords between the containers. They are set when a volume is first used; to change one later, change it there too.
POSTGRES_PASSWORD={postgres}
VALKEY_PASSWORD={valkey}
S3_ACCESS_KEY_ID=jactus
S3_SECRET_ACCESS_KEY={s3}

# Where the API listens: this machine only, until something with TLS stands in front of it (docs/deploy.md).
JACTUS_BIND=127.0.0.1
JACTUS_PORT=8000

# Where users reach the object storage, because download links lead there; and where it listens.
JACTUS_S3_PUBLIC_ENDPOINT=http://127.0.0.1:8333
S3_BIND=127.0.0.1

# Processes of the API, and the most memory that one worker may take.
WEB_CONCURRENCY=2
WORKER_MEMORY=16g

# Kinds of workers there are, with the memory of their device in bytes (0: no bound). A job goes to the smallest that
# holds it. With `--profile gpu` say what your GPU has, as in {{"cpu":0,"gpu":24000000000}}.
JACTUS_DEVICE_MEMORY={{"cpu":0}}
GPU_WORKER_MEMORY=64g
GPUS_PER_WORKER=1

# debug, info, warning or error.
JACTUS_LOG_LEVEL=info
"""


def main() -> None:
    if FILE.exists():
        sys.exit(f"{FILE} is there already; it stays as it is.")
    names = ("api_key", "secret_key", "postgres", "valkey", "s3")
    text = TEXT.format(**{name: secrets.token_hex(24) for name in names})
    with os.fdopen(os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
    print(f"Wrote {FILE}. Next: docker compose up --detach --wait")  # noqa: T201


if __name__ == "__main__":
    main()
