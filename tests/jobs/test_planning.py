"""The helper process: it answers, and what happens when it hangs, dies, or loses its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jactus_core.config import CompressionConfig
from jactus_core.errors import JactusError, UnsupportedModel
from jobs.classes import smallest_class
from jobs.helper import Helper, PlanningBusy, PlanningTimeout
from jobs.memory import Memory
from jobs.planner import Request
from jobs.services import Services
from tests.helpers import is_alive, wait_for

CONFIG = CompressionConfig(budgets=(0.5,))
SMALL = '{"model_type": "bert", "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, ' + (
    '"num_attention_heads": 4, "intermediate_size": 64}'
)
ENDLESS = SMALL.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1000000000')


def question(config_json: str = SMALL) -> Request:
    return Request(model="m", model_type="bert", config_json=config_json, config=CONFIG, classes=2)


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    """Starting it takes seconds, so the tests share it; it starts again when one of them has killed it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JACTUS_SECRET_KEY", "hidden")
        patch.setenv("HF_TOKEN", "hidden")
        opened = Helper(60)
        yield opened
        opened.close()


def process_of(helper: Helper) -> psutil.Process:
    assert helper.pid is not None
    return psutil.Process(helper.pid)


def test_a_killed_helper_is_replaced_and_the_next_question_is_answered(helper: Helper) -> None:
    first = helper.ask(question())
    process = process_of(helper)
    process.kill()
    assert helper.ask(question()) == first
    assert process_of(helper) != process


def test_a_model_that_takes_too_long_is_given_up_and_the_next_one_is_answered(
    helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper.ask(question())
    process = process_of(helper)
    with monkeypatch.context() as patch:
        patch.setattr(helper, "_seconds", 0.5)
        with pytest.raises(PlanningTimeout, match=r"more than 0\.5 seconds"):
            helper.ask(question(ENDLESS))
    assert not is_alive(process)
    assert helper.ask(question())["layers"] == 13


def test_a_model_that_kills_the_helper_is_refused(helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "_exchange", lambda request: None)
    with pytest.raises(UnsupportedModel, match="ends the process"):
        helper.ask(question())


def test_what_took_too_long_is_not_tried_again_at_once(
    services: Services, helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = services.planner
    monkeypatch.setattr(planner, "_helper", helper)
    helper.ask(question())
    monkeypatch.setattr(helper, "_seconds", 0.5)
    for _ in range(2):
        with pytest.raises(PlanningTimeout):
            planner._asked("key", question(ENDLESS), dict)
        assert helper.pid is None, "it was started again"


def test_refusals_carry_the_code_of_the_library(helper: Helper) -> None:
    with pytest.raises(JactusError, match="no text-classification model of the type") as caught:
        helper.ask(question().model_copy(update={"model_type": "poem"}))
    assert caught.value.code == "unsupported_model"
    with pytest.raises(JactusError, match="cannot build") as caught:
        helper.ask(question(SMALL.replace("32", "-32")))
    assert caught.value.code == "unsupported_model"


def test_the_helper_knows_no_secrets_and_asks_no_network(helper: Helper) -> None:
    helper.ask(question())
    environment = process_of(helper).environ()
    assert "hidden" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_many_threads_are_answered_one_after_the_other(helper: Helper) -> None:
    sizes = [32, 64, 96, 128, 160]
    found: dict[int, Any] = {}

    def ask(size: int) -> None:
        with helper.turn():
            found[size] = helper.ask(question(SMALL.replace('"intermediate_size": 64', f'"intermediate_size": {size}')))

    threads = [threading.Thread(target=ask, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[size]["compressible_parameters"] for size in sizes] == [
        2 * (4 * 32 * 32 + 2 * 32 * size) + 32 * 32 for size in sizes
    ]


def test_nobody_waits_for_a_turn_for_ever() -> None:
    helper = Helper(0.1)
    with helper.turn(), pytest.raises(PlanningBusy), helper.turn():
        pass


def test_closing_ends_a_question_that_is_being_answered_and_leaves_no_folder() -> None:
    helper = Helper(60)
    helper.ask(question())
    folder = Path(process_of(helper).cmdline()[-1])
    assert folder.is_dir()
    process, errors = process_of(helper), list[BaseException]()

    def ask() -> None:
        try:
            with helper.turn():
                helper.ask(question(ENDLESS))
        except JactusError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: process.cpu_percent(0.1) > 10, what="building")
    helper.close()
    thread.join(30)
    assert [type(error) for error in errors] == [PlanningBusy]
    assert not is_alive(process)
    assert not folder.exists()


PARENT = """
import sys
from jobs.helper import Helper
from tests.jobs.test_planning import ENDLESS, question
helper = Helper(600)
helper.ask(question())
print(helper.pid, flush=True)
helper.ask(question(ENDLESS))
"""


def test_a_helper_whose_parent_is_killed_ends_with_its_folder_in_the_middle_of_its_work() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    helper = psutil.Process(int(parent.stdout.readline()))
    folder = Path(helper.cmdline()[-1])
    assert folder.is_dir()
    wait_for(lambda: helper.cpu_percent(0.1) > 10, what="building")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not is_alive(helper), what="the end of the helper")
    assert not folder.exists()


def test_memory_is_bounded_and_may_expire() -> None:
    memory = Memory(2)
    memory.keep("a", 1)
    memory.keep("b", 2)
    assert memory.recall("a") == 1
    memory.keep("c", 3)
    assert [memory.recall(key) for key in "abc"] == [1, None, 3]
    memory.keep("a", 4, seconds=-1)
    assert memory.recall("a") is None


def test_the_smallest_class_that_holds_it_is_chosen() -> None:
    memory = {"gpu-large": 80, "cpu": 0, "gpu": 16}
    assert [smallest_class(memory, needed) for needed in (16, 17, 80, 81)] == ["gpu", "gpu-large", "gpu-large", "cpu"]  # type: ignore[arg-type]
    assert smallest_class({"gpu": 16}, 17) is None
