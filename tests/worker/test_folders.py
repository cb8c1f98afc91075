"""Scratch space that is being removed is nobody's any more."""

from __future__ import annotations

from jobs.moves import Lease
from jobs.services import Services
from jobs.settings import Settings
from worker.folders import GOING, take, tidy


def test_a_folder_half_removed_is_not_taken_and_goes_in_the_end(services: Services, settings: Settings) -> None:
    half = settings.work_dir / f"{GOING}job_a.1"
    half.mkdir(parents=True)
    (half / "some").write_text("")
    folder = take(settings.work_dir, Lease("job_a", "token", 2))
    assert list(folder.iterdir()) == []
    tidy(services)
    assert list(settings.work_dir.iterdir()) == []


def test_an_attempt_takes_what_the_newest_before_it_left(settings: Settings) -> None:
    for attempt in (1, 2):
        folder = settings.work_dir / f"job_a.{attempt}"
        folder.mkdir(parents=True)
        (folder / "stage").write_text(str(attempt))
    folder = take(settings.work_dir, Lease("job_a", "token", 3))
    assert (folder / "stage").read_text() == "2"
    assert list(settings.work_dir.iterdir()) == [folder]
