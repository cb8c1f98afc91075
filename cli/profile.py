"""Where the service is and who asks: from flags, the environment, `jactus login`, or a service of this folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import typer

URL_VARIABLE, KEY_VARIABLE = "JACTUS_URL", "JACTUS_API_KEY"
SECRETS = "secrets.json"
"""In the data folder of an embedded service: secrets that were made for it."""
SERVICE = "service.json"
"""Beside it while the service runs, and in the user's folder: where a service is, and a key for it."""


class NoService(Exception):
    """It is not known which service is meant, or with which key."""


@dataclass(frozen=True)
class Profile:
    url: str
    api_key: str


def find(url: str | None, api_key: str | None) -> Profile:
    """The service that is meant; a key that was saved goes to no other server than its own. Raises NoService."""
    url, api_key = url or os.environ.get(URL_VARIABLE), api_key or os.environ.get(KEY_VARIABLE)
    folders = (_users_folder(), Path(os.environ.get("JACTUS_DATA_DIR", ".jactus")))
    known = [profile for folder in folders if (profile := _kept_in(folder))]
    if url is None:
        if not known:
            raise NoService(
                "No service is known. Start one in this folder with `jactus serve`, or name one: `jactus login URL`, "
                f"or --url and --api-key, or {URL_VARIABLE} and {KEY_VARIABLE}."
            )
        return Profile(known[0].url, api_key or known[0].api_key)
    url = url.rstrip("/")
    keys = [api_key] if api_key else [profile.api_key for profile in known if profile.url == url]
    if not keys:
        raise NoService(f"No API key is known for {url}: `jactus login {url}`, or --api-key, or {KEY_VARIABLE}.")
    return Profile(url, keys[0])


def save(profile: Profile, folder: Path | None = None) -> Path:
    """For the calls to come, readable by the user only; in the user's folder, or another."""
    folder = folder or _users_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / SERVICE, json.dumps({"url": profile.url.rstrip("/"), "api_key": profile.api_key}))
    return folder / SERVICE


def forget(folder: Path | None = None) -> bool:
    """Whether there was anything to forget."""
    file = (folder or _users_folder()) / SERVICE
    existed = file.exists()
    file.unlink(missing_ok=True)
    return existed


def write_private(file: Path, text: str) -> None:
    """A file that only its owner reads."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)


def _users_folder() -> Path:
    return Path(typer.get_app_dir("jactus"))


def _kept_in(folder: Path) -> Profile | None:
    """None where there is no such file, or none that can be read."""
    try:
        return Profile(**json.loads((folder / SERVICE).read_text()))
    except (OSError, TypeError, ValueError):
        return None
