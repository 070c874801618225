"""The runner on real processes: to the end, through crashes, wishes, restarts and a store that goes away."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.jobs.desk import Claim, Ending
from service.jobs.gate import Gate
from service.jobs.leases import Lease
from service.jobs.local import Command, Local, environment
from service.jobs.runner import Limits, Runner
from service.jobs.stages import Plan

from ..running import wait_until
from .paper_desk import PaperDesk

WAIT = 120.0
STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
LIMITS = Limits(beat_seconds=0.05, poll_seconds=0.02, retries=2)
LEASE = 60.0


def make_plan(folder: Path, words: str = "", iterations: int = 10, gate: Gate | None = None) -> Plan:
    """A job of the stand-in; `words` are what its recipe tells it."""

    (folder.parent / "laid-ready").mkdir(parents=True, exist_ok=True)
    (folder.parent / "laid-ready/bundle.json").write_text("{}")

    class Scripted(Plan):
        def prepare(self) -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "recipe.yaml").write_text(f"iterations: {iterations}\n{words}\n")

    return Scripted(folder, "small", {}, gate, fewstep=STAND_IN)


def make_command(plan: Plan, stage: str, lease: float = LEASE) -> Command:
    options = ("--lease-seconds", str(lease), "--grace-seconds", "2")
    own = {
        **environment(1, ()),
        "STAND_IN_SECONDS": "0.05",
        "STAND_IN_BUNDLE": str(plan.folder.parent / "laid-ready"),
    }
    return Command(plan.folder, stage, plan.command(stage), own, options)


def claim(plan: Plan) -> Claim:
    return Claim(Lease("job-1", 1), plan)


def keep(claim: Claim, rest: Callable[[], None]) -> Ending:
    return Ending("succeeded", "Done.", result={"student": str(claim.plan.student)})


def make_runner(desk: PaperDesk, limits: Limits = LIMITS) -> Runner:
    return Runner(desk, Local(), make_command, keep, limits, Path(tempfile.mkdtemp()) / "slot")


@contextmanager
def running(desk: PaperDesk, limits: Limits = LIMITS) -> Iterator[Runner]:
    runner = make_runner(desk, limits)
    runner.start()
    try:
        yield runner
    finally:
        desk.gone = False
        runner.stop()
        runner.join()


def notes(plan: Plan) -> list[list[str]]:
    return [line.split() for line in (plan.student / "run/runs.txt").read_text().splitlines()]


def starts(plan: Plan) -> int:
    return sum(note[0] == "start" for note in notes(plan))


def each_iteration_was_by_one_process(plan: Plan) -> None:
    """Between a start and the next one all is by the process that started."""
    current = None
    for kind, *rest in notes(plan):
        if kind == "start":
            current = rest[-1]
        assert rest[-1] == current


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(tmp_path / "job-1")


def reached(desk: PaperDesk, iteration: int) -> None:
    wait_until(lambda: desk.progress.get("job-1", {}).get("iteration", 0) >= iteration, WAIT)


def ended(desk: PaperDesk) -> Ending:
    wait_until(lambda: desk.endings, WAIT)
    return desk.endings["job-1"]


def test_a_job_runs_through_its_stages_and_tells_how_far_it_is(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "job-1", gate=Gate())
    desk, stages = PaperDesk([claim(plan)]), []
    desk.when_told = lambda progress: stages.append(progress.stage)
    with running(desk):
        assert ended(desk) == Ending("succeeded", "Done.", result={"student": str(plan.student)})
    assert [message for _, message, _ in desk.said] == [
        "distill starts",
        "quality at iteration 10",
        "evaluate starts",
        "export starts",
    ]
    assert desk.said[1][2]["accuracy_1"] == 0.9
    assert list(dict.fromkeys(stages))[:3] == ["distill", "evaluate", "export"]
    assert desk.progress["job-1"]["percent"] == 100
    assert desk.progress["job-1"]["sample"] == "samples/000010.png"
    assert json.loads((plan.folder / "evaluate.out").read_text())["small, 1 step"]["accuracy"]["mean"] == 0.9
    assert starts(plan) == 1
    assert desk.checkpoints[-1].step == 10
    assert desk.checkpoints[-1].sample == "student/small/run/samples/000010.png"
    assert desk.checkpoints[-1].metrics["accuracy_1"] == 0.9


def test_a_crashed_job_goes_on_from_its_checkpoint(tmp_path: Path, plan: Plan) -> None:
    crashing = make_plan(tmp_path / "job-1", "crash at 6\n")
    desk = PaperDesk([claim(crashing)])
    with running(desk):
        assert ended(desk).status == "succeeded"
    assert starts(plan) == 2
    iterations = [int(note[1]) for note in notes(plan) if note[0] == "iteration"]
    assert iterations == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10], "the checkpoint was of 4"
    each_iteration_was_by_one_process(plan)


def test_a_job_that_always_crashes_at_one_place_is_given_up(tmp_path: Path) -> None:
    dying = make_plan(tmp_path / "job-1")
    program = (sys.executable, "-c", "import os, sys; print('last words', file=sys.stderr); os.abort()")
    dying = Plan(dying.folder, "small", {}, fewstep=program)
    desk = PaperDesk([claim(dying)])
    with running(desk):
        ending = ended(desk)
    assert (ending.status, ending.code) == ("failed", "job_crashed")
    assert ending.message is not None
    assert ending.message.startswith("distill crashed 3 times at iteration 0: ")
    assert len(desk.said) == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("fail\n", "distill: fewstep distill: the loss turned NaN"),
        ("disk full at 5\n", "distill: fewstep distill: [Errno 28] No space left on device"),
    ],
)
def test_a_job_that_fails_by_its_own_account_is_not_tried_again(
    tmp_path: Path, words: str, reason: str
) -> None:
    plan = make_plan(tmp_path / "job-1", words)
    desk = PaperDesk([claim(plan)])
    with running(desk):
        assert ended(desk) == Ending("failed", reason, "job_failed")
    assert starts(plan) == 1


def test_with_room_on_the_disk_again_a_failed_job_goes_on(tmp_path: Path) -> None:
    full = make_plan(tmp_path / "job-1", "disk full at 5\n")
    desk = PaperDesk([claim(full)])
    with running(desk):
        assert ended(desk).status == "failed"
    again = PaperDesk([claim(make_plan(tmp_path / "job-1"))])
    with running(again):
        assert ended(again).status == "succeeded"
    iterations = [int(note[1]) for note in notes(full) if note[0] == "iteration"]
    assert iterations == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_cancelled_a_job_stops_with_its_state_saved(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "job-1", iterations=10_000)
    desk = PaperDesk([claim(plan)])
    with running(desk):
        reached(desk, 3)
        desk.wishes["job-1"] = "cancel"
        assert ended(desk) == Ending("cancelled", "The job was cancelled.")
    done = int(notes(plan)[-1][1])
    assert (plan.student / f"run/checkpoints/{done:06d}").is_dir()
    assert not Local().alive(plan.folder)


def test_paused_and_resumed_a_job_does_no_iteration_twice(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "job-1", iterations=60)
    desk = PaperDesk([claim(plan)])
    with running(desk):
        for _ in range(2):
            reached(desk, desk.progress.get("job-1", {}).get("iteration", 0) + 3)
            desk.wishes["job-1"] = "pause"
            wait_until(lambda: desk.left.get("job-1") == "paused", WAIT)
            assert not Local().alive(plan.folder)
            desk.left.clear()
            desk.wishes.clear()
            desk.waiting.append(claim(plan))
        assert ended(desk).status == "succeeded"
    assert [int(note[1]) for note in notes(plan) if note[0] == "iteration"] == list(range(1, 61))
    assert starts(plan) == 3


def test_a_runner_that_ends_gives_its_job_back_with_its_state_saved(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "job-1", iterations=40)
    desk = PaperDesk([claim(plan)])
    with running(desk):
        reached(desk, 3)
    assert desk.left == {"job-1": "queued"}
    assert not Local().alive(plan.folder)
    desk.waiting.append(claim(plan))
    with running(desk):
        assert ended(desk).status == "succeeded"
    assert [int(note[1]) for note in notes(plan) if note[0] == "iteration"] == list(range(1, 41))


def test_a_store_that_goes_away_for_a_while_does_not_stop_the_job(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "job-1", iterations=30)
    desk = PaperDesk([claim(plan)])
    with running(desk):
        reached(desk, 2)
        desk.gone = True
        wait_until(lambda: (plan.student / "generator.json").exists(), WAIT)
        assert desk.endings == {}
        desk.gone = False
        assert ended(desk).status == "succeeded"
    assert starts(plan) == 1
    assert "quality at iteration 30" in [message for _, message, _ in desk.said]


def test_a_store_that_is_gone_is_told_once_and_so_is_its_return(caplog: pytest.LogCaptureFixture) -> None:
    """It is asked at every poll."""
    desk = PaperDesk()

    def told() -> list[str]:
        return [record.levelname for record in caplog.records if record.name == "service.jobs.runner"]

    with caplog.at_level("INFO"), running(desk):
        for outage in (1, 2):
            desk.gone = True
            wait_until(lambda: told().count("WARNING") == outage, WAIT)  # noqa: B023
            time.sleep(10 * LIMITS.poll_seconds)
            desk.gone = False
            wait_until(lambda: told().count("INFO") == outage, WAIT)  # noqa: B023
    assert told() == ["WARNING", "INFO"] * 2


def test_a_job_that_another_runner_has_taken_is_let_go(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "job-1", iterations=10_000)
    desk = PaperDesk([claim(plan)])
    with running(desk):
        reached(desk, 2)
        desk.stolen = True
        wait_until(lambda: not Local().alive(plan.folder), WAIT)
    assert desk.endings == {}
    assert desk.left == {}


def test_two_runners_with_one_job_by_mistake_start_one_process(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "job-1", iterations=20)
    first, second = PaperDesk([claim(plan)]), PaperDesk([claim(plan)])
    with running(first):
        reached(first, 1)
        with running(second):
            assert ended(first).status == "succeeded"
    assert starts(plan) == 1
    assert second.endings == {}
