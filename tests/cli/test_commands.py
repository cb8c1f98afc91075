"""What the commands say and how they end, apart from the examples of docs/cli.md."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli import profile
from cli.client import Client
from cli.commands import FAILED, INTERRUPTED, NO_ANSWER, NO_SUCCESS, WRONG_USAGE
from cli.main import app
from jobs import schemas
from jobs.settings import Settings
from tests.api.live import serving
from tests.helpers import API_KEY, QUICK, wait_for
from tests.tiny import write_reviews

NOBODY = "http://127.0.0.1:1"
AS_IN_THE_FOREGROUND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells switch it off in the background
from cli.main import app
app()
"""


@dataclass(frozen=True)
class Terminal:
    """A user in a folder of their own, who has logged in nowhere."""

    folder: Path

    def run(self, *words: str, **options: str) -> Result:
        return CliRunner().invoke(app, [*words], **options)  # type: ignore[arg-type]

    def read(self, *words: str) -> object:
        """What a command prints for programs."""
        answer = self.run(*words, "--json")
        assert answer.exit_code == 0, answer.output
        return json.loads(answer.stdout)


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    monkeypatch.setattr(profile, "_users_folder", lambda: tmp_path / "home" / "config" / "jactus")
    return Terminal(tmp_path)


@pytest.fixture
def url(settings: Settings, tiny_bert: Path) -> Iterator[str]:
    """Of a real service where no worker runs."""
    with serving(settings.model_copy(update={"model_root": tiny_bert.parent})) as (_, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def at_home(terminal: Terminal, url: str) -> Terminal:
    """The same user, logged in."""
    assert terminal.run("login", url, input=API_KEY).exit_code == 0
    return terminal


def queued(url: str, folder: Path) -> str:
    """A job that no worker takes."""
    with Client(url, API_KEY) as client:
        dataset = client.upload_dataset(write_reviews(folder / "reviews.jsonl", 20))
        request = schemas.JobCreate(model="tiny-bert", dataset=dataset.id, budgets=(0.5,), hyperparameters=QUICK)
        return client.create_job(request).id


def test_without_a_service_it_says_how_to_name_one(terminal: Terminal) -> None:
    answer = terminal.run("jobs", "list")
    assert answer.exit_code == WRONG_USAGE
    for way in ("jactus serve", "jactus login", "--url", "JACTUS_URL"):
        assert way in answer.stderr


def test_a_service_that_does_not_answer_has_a_code_of_its_own(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.client.connection.PAUSE_SECONDS", 0.001)
    answer = terminal.run("jobs", "list", "--url", NOBODY, "--api-key", "key", "--json")
    assert (answer.exit_code, answer.stdout) == (NO_ANSWER, "")
    error = json.loads(answer.stderr)["error"]
    assert error["code"] == "no_answer"
    assert NOBODY in error["message"]
    assert "jactus doctor" in error["message"]


def test_a_login_is_tried_kept_private_and_never_shows_the_key(terminal: Terminal, url: str) -> None:
    refused = terminal.run("login", url, input="jactus_wrong")
    assert (refused.exit_code, refused.stdout.strip()) == (FAILED, "")
    assert "invalid_api_key" in refused.stderr
    assert terminal.run("jobs", "list").exit_code == WRONG_USAGE, "what was refused is not kept"

    answer = terminal.run("login", f"{url}/", input=API_KEY)
    assert answer.exit_code == 0
    [file] = (terminal.folder / "home").rglob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert terminal.read("jobs", "list") == []
    assert API_KEY not in refused.output + answer.output + terminal.run("doctor").output
    assert terminal.run("logout").exit_code == 0
    assert terminal.run("jobs", "list").exit_code == WRONG_USAGE


def test_a_saved_key_goes_to_its_own_server_only(at_home: Terminal, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = at_home.run("jobs", "list", "--url", NOBODY)
    assert answer.exit_code == WRONG_USAGE
    assert f"No API key is known for {NOBODY}" in answer.stderr
    assert at_home.run("jobs", "list", "--url", f"{url}/").exit_code == 0
    monkeypatch.setenv("JACTUS_URL", NOBODY)
    assert at_home.run("jobs", "list").exit_code == WRONG_USAGE, "the environment comes before the login"
    assert at_home.run("jobs", "list", "--url", url).exit_code == 0, "and flags before the environment"
    monkeypatch.setenv("JACTUS_API_KEY", "jactus_another")
    assert at_home.run("jobs", "list", "--url", url).exit_code == FAILED, "a key in the environment is used"


def test_a_service_of_this_folder_is_found(terminal: Terminal, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    profile.save(profile.Profile(url, API_KEY), terminal.folder / ".jactus")
    assert terminal.read("jobs", "list") == []
    profile.save(profile.Profile(url, API_KEY), terminal.folder / "elsewhere")
    (terminal.folder / ".jactus" / "service.json").write_text("half a fi")
    assert terminal.run("jobs", "list").exit_code == WRONG_USAGE
    monkeypatch.setenv("JACTUS_DATA_DIR", str(terminal.folder / "elsewhere"))
    assert terminal.read("jobs", "list") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "1.5"], "budgets.0: Input should be less than or equal to 1, not 1.5."),
        (["--budget", "0.5", "--set", "epochz=3"], "hyperparameters.epochz: There is no such setting."),
        (["--budget", "0.5", "--set", "epochs=many"], "hyperparameters.epochs"),
        (["--budget", "0.5", "--set", "epochs"], "--set wants NAME=VALUE, not 'epochs'."),
        (["--budget", "0.5", "--output", "tensorflow"], "outputs.0"),
        (["--budget", "0.5", "--task", "translation"], "must be one of text-classification"),
        (["--budget", "0.5", "--column", "sentence=text"], "the roles are text, label"),
        ([], "Missing option '--budget'"),
    ],
    ids=str,
)
def test_a_wrong_request_is_explained_before_anything_is_uploaded(
    at_home: Terminal, words: list[str], said: str
) -> None:
    file = write_reviews(at_home.folder / "reviews.jsonl", 20)
    answer = at_home.run("jobs", "create", "tiny-bert", str(file), *words)
    assert answer.exit_code == WRONG_USAGE
    assert said in " ".join(answer.output.replace("│", " ").split())
    assert at_home.read("datasets", "list") == []


def test_what_the_service_refuses_has_its_words(at_home: Terminal) -> None:
    file = write_reviews(at_home.folder / "reviews.jsonl", 20)
    answer = at_home.run("jobs", "create", "no-such-model", str(file), "--budget", "0.5", "--json")
    assert (answer.exit_code, answer.stdout) == (FAILED, "")
    assert json.loads(answer.stderr.splitlines()[-1])["error"]["param"] == "model"
    assert at_home.run("jobs", "show", "job_0").exit_code == FAILED


def test_an_estimate_that_cannot_be_done_is_a_failure_that_is_shown(at_home: Terminal) -> None:
    file = write_reviews(at_home.folder / "reviews.jsonl", 20)
    good = at_home.run("estimate", "tiny-bert", str(file), "--budget", "0.5")
    assert good.exit_code == 0
    assert "smallest budget" in good.output
    bad = at_home.run("estimate", "tiny-bert", str(file), "--budget", "0.0001")
    assert bad.exit_code == FAILED
    assert "infeasible_budget" in bad.output
    assert at_home.read("jobs", "list") == []


def test_a_request_that_is_sent_twice_makes_one_job(at_home: Terminal) -> None:
    dataset = json.loads(
        at_home.run("datasets", "upload", str(write_reviews(at_home.folder / "r.jsonl", 20)), "--json").stdout
    )["id"]
    words = ("jobs", "create", "tiny-bert", dataset, "--budget", "0.5", "--idempotency-key", "today")
    assert at_home.run(*words).exit_code == at_home.run(*words).exit_code == 0
    [job] = schemas.Page[schemas.Job].model_validate({"data": at_home.read("jobs", "list"), "has_more": False}).data
    assert job.dataset == dataset


def test_brackets_in_what_is_told_are_no_markup(at_home: Terminal) -> None:
    file = write_reviews(at_home.folder / "reviews.jsonl", 20)
    note = "[red]films[/] [onnx]"
    at_home.run("jobs", "create", "tiny-bert", str(file), "--budget", "0.5", "--metadata", f"project={note}")
    [job] = schemas.Page[schemas.Job].model_validate({"data": at_home.read("jobs", "list"), "has_more": False}).data
    assert note in at_home.run("jobs", "show", job.id).output


def test_a_job_without_files_has_none_to_download(at_home: Terminal, url: str) -> None:
    answer = at_home.run("download", queued(url, at_home.folder), str(at_home.folder / "out"))
    assert answer.exit_code == WRONG_USAGE
    assert "has no files; it is queued" in answer.stderr
    assert not (at_home.folder / "out").exists()


def test_a_job_that_has_not_run_has_no_log(at_home: Terminal, url: str) -> None:
    answer = at_home.run("jobs", "log", queued(url, at_home.folder))
    assert (answer.exit_code, "has not run yet" in answer.stderr) == (WRONG_USAGE, True)


def test_watching_a_job_that_ends_badly_says_so(at_home: Terminal, url: str) -> None:
    job = queued(url, at_home.folder)
    at_home.run("jobs", "cancel", job)
    answer = at_home.run("jobs", "watch", job)
    assert answer.exit_code == NO_SUCCESS
    assert answer.output.split()[:2] == ["queued", "cancelled"]
    assert f"jactus jobs retry {job}" in answer.output
    events = [json.loads(line) for line in at_home.run("jobs", "watch", job, "--json").stdout.splitlines()]
    assert [event["data"]["status"] for event in events] == ["queued", "cancelled"]


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(at_home: Terminal, url: str) -> None:
    job = queued(url, at_home.folder)
    environment = {**os.environ, "JACTUS_URL": url, "JACTUS_API_KEY": API_KEY, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", AS_IN_THE_FOREGROUND, "jobs", "watch", job],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "queued"
    time.sleep(0.2)  # into the wait for the next event
    process.send_signal(signal.SIGINT)
    try:
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED
    assert f"jactus jobs watch {job}" in said
    assert "Traceback" not in said
    with Client(url, API_KEY) as client:
        assert client.job(job).status == "queued"


def test_the_doctor_names_what_is_wrong_and_the_remedy(
    at_home: Terminal, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    healthy = at_home.run("doctor")
    assert healthy.exit_code == 0, healthy.output
    assert "answers; tenant default" in healthy.output

    monkeypatch.setenv("JACTUS_DATABASE_URL", "postgresql://jactus:hidden@127.0.0.1:1/jactus")
    monkeypatch.setenv("JACTUS_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("JACTUS_STORAGE_URL", (at_home.folder / "storage").as_uri())
    answer = at_home.run("doctor", "--json")
    assert answer.exit_code == FAILED
    found = {finding["name"]: finding for finding in json.loads(answer.stdout)}
    states = {name: found[name]["state"] for name in ("database", "broker", "storage", "service")}
    assert states == {"database": "problem", "broker": "problem", "storage": "ok", "service": "ok"}
    assert "JACTUS_BROKER_URL" in found["broker"]["remedy"]
    assert "hidden" not in answer.output


def test_the_doctor_minds_what_is_missing_and_unwritable(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = {"torch", "onnxscript"}
    monkeypatch.setattr("cli.commands.find_spec", lambda name: None if name in missing else object())
    monkeypatch.setattr("cli.doctor.os.access", lambda *_: False)
    found = {finding["name"]: finding for finding in json.loads(terminal.run("doctor", "--json").stdout)}
    assert (found["torch"]["state"], found["onnx"]["state"]) == ("warning", "warning")
    assert "jactus-core[onnx]" in found["onnx"]["remedy"]
    assert found["data folder"]["state"] == "problem"
    assert found["service"]["state"] == "warning", "to know no service is no fault"


@pytest.mark.parametrize(
    ("words", "extra"),
    [(("compress", "bert", "data.csv", "-b", "0.5"), "method"), (("serve",), "service"), (("keys", "list"), "service")],
    ids=str,
)
def test_what_is_not_installed_is_named(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], extra: str
) -> None:
    monkeypatch.setattr("cli.commands.find_spec", lambda name: None)
    answer = terminal.run(*words)
    assert answer.exit_code == WRONG_USAGE
    assert f"pip install 'jactus-core[{extra}]'" in answer.stderr


def test_an_export_does_not_write_into_a_folder_with_something_in_it(terminal: Terminal, tiny_bert: Path) -> None:
    (terminal.folder / "full").mkdir()
    (terminal.folder / "full" / "thesis.tex").touch()
    answer = terminal.run("export", str(tiny_bert), str(terminal.folder / "full"))
    assert answer.exit_code == WRONG_USAGE
    assert "not empty" in answer.stderr


def test_a_local_mistake_is_explained(terminal: Terminal, tiny_bert: Path) -> None:
    file = write_reviews(terminal.folder / "reviews.jsonl", 20)
    for words, said in {
        ("compress", "no-such-model", str(file), "-b", "0.5"): "no-such-model",
        ("compress", str(tiny_bert), "missing.csv", "-b", "0.5"): "missing.csv",
        ("inspect", str(tiny_bert)): "no report.json",
    }.items():
        answer = terminal.run(*words)
        assert answer.exit_code == FAILED, answer.output
        assert said in answer.stderr
        assert "Traceback" not in answer.output


def test_results_are_for_programs_and_progress_is_apart(terminal: Terminal, tiny_bert: Path) -> None:
    file = write_reviews(terminal.folder / "reviews.jsonl", 40)
    settings = [f"--set={name}={value}" for name, value in QUICK.model_dump(exclude_defaults=True).items()]
    answer = terminal.run("compress", str(tiny_bert), str(file), "-b", "0.5", *settings, "--json")
    assert answer.exit_code == 0, answer.output
    assert [point["budget"] for point in json.loads(answer.stdout)["budgets"]] == [0.5]
    assert "finetuning" in answer.stderr
    wait_for(lambda: (terminal.folder / "compressed" / "budget-0.5").is_dir(), what="the checkpoint")
