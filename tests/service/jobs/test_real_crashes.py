"""The crash matrix with the true command on a tiny teacher: whatever dies, and when, every student comes out bit for
bit as if nothing had, so that no iteration ran twice and none was left out."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.bundle import Bundle
from service.jobs.artifacts import Artifacts
from service.jobs.local import environment
from service.jobs.store import NewJob

from ..running import wait_until
from .postgres import Postgres
from .test_crashes import ROOT, Site, site, strike

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

WAIT = 900.0
MOMENTS, ITERATIONS = 5, 10
RECIPE: dict[str, Any] = {
    "iterations": ITERATIONS,
    "batch": 2,
    "quality": None,
    "samples_every": 5,
    "checkpoint_every": 1,
    "embedding_cache": False,
    "save_dtype": "float32",
}
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("a red circle\na blue star\na green square\na yellow triangle\n")
    return file


def losses(run: Path) -> list[tuple[int, float, float]]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [
        (event["iteration"], event["loss_fake"], event["loss_generator"])
        for event in events
        if event["type"] == "iteration"
    ]


def weights(student: Path) -> str:
    [file] = (student / "transformer").glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(
    tiny: Callable[[str], Path], prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """The student of each seed, by the same command without a server, a kill or a pause."""
    students = {}
    for seed in SEEDS:
        folder = tmp_path_factory.mktemp("undisturbed")
        own = {"teacher": str(tiny("sana")), "prompts": str(prompts), "seed": seed}
        (folder / "recipe.yaml").write_text(json.dumps({**RECIPE, **own}))
        students[seed] = folder / "student"
        command = [sys.executable, "-m", "fewstep", "distill", str(folder / "recipe.yaml")]
        subprocess.run(
            [*command, "--out", str(students[seed])],
            check=True,
            cwd=ROOT,
            env=job_environment(),
            timeout=WAIT,
        )
    return students


def job_environment() -> dict[str, str]:
    import os

    return {**os.environ, **environment(1, ()), "PYTHONPATH": str(ROOT)}


def test_the_true_command_survives_crashes_at_random_moments(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    url: str,
    tiny: Callable[[str], Path],
    prompts: Path,
    undisturbed: dict[int, Path],
) -> None:
    kind = url.partition(":")[0]
    server: Postgres | None = request.getfixturevalue("server") if kind == "postgresql" else None
    victims = ["server", "job", "both"] + (["database"] * 2 if server else [])
    chance = random.Random(f"true command {kind}")
    teacher = str(tiny("sana"))
    with site(tmp_path, url, "real") as here:
        asked = [NewJob(teacher, str(prompts), RECIPE, seed=seed) for seed in SEEDS]
        jobs = [here.store.create(one, limit=10).id for one in asked]
        for _ in range(MOMENTS):
            wait_until(lambda: here.group() is not None or here.all_ended(jobs), WAIT)
            time.sleep(chance.uniform(0, 12))
            strike(here, chance.choice(victims), chance, server)
        wait_until(lambda: here.all_ended(jobs), WAIT)
        assert here.group() is None
        for job, seed in zip(jobs, SEEDS):
            succeeded_as_if_nothing_had_happened(here, job, undisturbed[seed])
    assert here.store.counts() == {"succeeded": len(SEEDS)}


def succeeded_as_if_nothing_had_happened(here: Site, job: str, undisturbed: Path) -> None:
    row = here.job(job)
    assert (row.status, row.error, row.result["published"]) == ("succeeded", None, False)
    messages = [event.message for event in here.store.events(job, limit=10_000)]
    assert [message for message in messages if message.startswith("The student is")] == messages[-1:]
    [student] = (here.data / "jobs" / job / "student").iterdir()
    assert [iteration for iteration, *_ in losses(student / "run")] == list(range(1, ITERATIONS + 1))
    assert losses(student / "run") == losses(undisturbed / "run")
    assert weights(student) == weights(undisturbed)
    [bundle] = (here.data / "jobs" / job / "bundle").iterdir()
    assert Bundle.load(bundle).digest == row.result["bundle"]["bundle_digest"]
    kept = Artifacts(str(here.data.absolute() / "artifacts"))
    fetched = here.data / "fetched" / job
    kept.get(job, "student", fetched)
    assert weights(fetched) == weights(undisturbed)
