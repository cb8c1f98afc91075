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
# Any other line of .env.example may stand here too: API and workers get the whole file.

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

# Where the object storage listens, and how users reach it, because download links lead there.
S3_BIND=127.0.0.1
S3_PORT=8333
JACTUS_S3_PUBLIC_ENDPOINT=http://127.0.0.1:8333

# Processes of the API, and the most memory that one worker may take.
WEB_CONCURRENCY=2
WORKER_MEMORY=16g

# Kinds of workers there are, with the memory of their device in bytes (0: no bound). A job goes to the smallest that
# holds it. With `--profile gpu` say what your GPU has, as in {{"cpu":0,"gpu":24000000000}}.
JACTUS_DEVICE_MEMORY={{"cpu":0}}

# What each kind of worker takes, and for one worker with GPUs: how many of them, and how much of the machine's memory.
JACTUS_WORKER_CLASSES=["cpu"]
JACTUS_GPU_WORKER_CLASSES=["gpu","gpu-large"]
GPUS_PER_WORKER=1
GPU_WORKER_MEMORY=64g

# Servers that run elsewhere (docs/deploy.md); empty: those of docker-compose.yml. For storage that is not an S3 server
# of your own, such as Amazon's, add JACTUS_S3_ENDPOINT= and JACTUS_S3_PUBLIC_ENDPOINT= with nothing behind them.
JACTUS_DATABASE_URL=
JACTUS_BROKER_URL=
JACTUS_STORAGE_URL=

# Where models come from.
HF_ENDPOINT=https://huggingface.co

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
