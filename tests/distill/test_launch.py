"""`fewstep distill --nproc`: real processes, really killed and really stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from distill.launch import _died
from fewstep.cli import main

from .conftest import TINY, events

Start = Callable[..., subprocess.Popen[str]]

LONG_ENOUGH = 400  # iterations that no machine gets through before it is stopped


@pytest.fixture
def recipe_file(tiny_teacher: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    often = {"samples_every": 1000, "checkpoint_every": 2, "iterations": LONG_ENOUGH}
    path.write_text(yaml.safe_dump({"teacher": str(tiny_teacher), **TINY, **often}))
    return path


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `fewstep distill` on two ranks; none outlives the test."""
    jobs: list[subprocess.Popen[str]] = []

    def start(recipe: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fewstep", "distill", str(recipe), "--out", str(out), *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        jobs.append(subprocess.Popen([*command, "--nproc", "2", "--device", "cpu"], **pipes))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.poll() is None:
            for process in (*psutil.Process(job.pid).children(recursive=True), job):
                process.kill()


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


def iterations(out: Path) -> list[int]:
    return [event["iteration"] for event in events(out)] if (out / "run/events.jsonl").exists() else []


def rank_process(job: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process that the launcher started as `rank`: it starts them in their order."""
    children = psutil.Process(job.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())][rank]


def checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name) for path in (out / "run/checkpoints").glob("[0-9]*"))


def last_line(stderr: str) -> str:
    return stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_a_signal_saves_it(
    start: Start, recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    job = start(recipe_file, out)
    wait_for(lambda: len(iterations(out)) >= 3, job)
    rank_process(job, 1).kill()
    _, stderr = job.communicate(timeout=300)
    assert job.returncode == 1
    assert last_line(stderr) == "fewstep distill: rank 1 died (SIGKILL); go on with --resume"
    before = iterations(out)[-1]  # which may be after the newest checkpoint
    assert not (out / "generator.json").exists()

    job = start(recipe_file, out, "--resume")
    wait_for(lambda: iterations(out)[-1:] > [before + 1], job)
    job.send_signal(signal.SIGTERM)
    stdout, stderr = job.communicate(timeout=300)
    done = iterations(out)
    assert job.returncode == 130
    assert last_line(stderr) == f"fewstep distill: stopped at iteration {done[-1]}; go on with --resume"
    assert stdout == ""
    assert checkpoints(out)[-1] == done[-1]
    assert done == list(range(1, done[-1] + 1)), "each iteration once, though some were done twice"
    assert not list((out / "run/checkpoints").glob(".*"))


def test_ranks_that_cannot_share_the_batch_are_refused_before_they_start(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", str(recipe_file), "--out", str(tmp_path / "s"), "--nproc", "3"]) == 2
    assert "batch 4 in 1 part(s) is 4 images, which 3 ranks cannot share" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_an_error_of_the_request_comes_back_from_the_ranks(start: Start, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("teacher: nowhere-to-be-found\nbatch: 4\n")
    job = start(recipe, tmp_path / "s")
    _, stderr = job.communicate(timeout=300)
    assert job.returncode == 2
    assert last_line(stderr).startswith("fewstep distill: no model 'nowhere-to-be-found'")
    assert not (tmp_path / "s").exists()


def test_the_rank_that_a_signal_ended_is_named_and_not_those_that_missed_it() -> None:
    absent = os.devnull
    failures = {
        0: ProcessFailure(0, 10, 1, absent),
        1: ProcessFailure(1, 11, -signal.SIGKILL, absent),
        2: ProcessFailure(2, 12, 1, absent),
    }
    assert _died(ChildFailedError("distill", failures)) == "rank 1 died (SIGKILL); go on with --resume"
