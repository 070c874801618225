"""The crash matrix: server, job, both and database die at random moments; every job comes to its one true end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from service.jobs.attend import PROCESS, read_json
from service.jobs.database import Database, StoreGoneError, sqlite_url
from service.jobs.store import JobStore, NewJob
from service.jobs.tables import JobRow

from ..running import wait_until
from .postgres import Postgres
from .test_conclude import SHIPPED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WAIT = 240.0
MOMENTS, JOBS, ITERATIONS = 20, 4, 80
ROOT = Path(__file__).parents[3]


class Site:
    """One worker process on a data folder and a database; it can be killed and comes back."""

    def __init__(self, data: Path, url: str, *words: str) -> None:
        self.data, self.url, self.words = data, url, words
        self.store = JobStore(Database(url))
        self.worker: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        own = {"STAND_IN_SECONDS": "0.05", "STAND_IN_BUNDLE": str(SHIPPED), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.service.jobs.worker", str(self.data), self.url, *self.words]
        self.worker = subprocess.Popen(command, env={**os.environ, **own}, cwd=ROOT)

    def kill(self) -> None:
        assert self.worker is not None
        self.worker.kill()
        self.worker.wait()

    def stop(self) -> None:
        assert self.worker is not None
        self.worker.terminate()
        self.worker.wait(WAIT)

    def submit(self, **recipe: object) -> str:
        asked = NewJob("shapes-sana", "shapes:train", recipe, options={"publish": {"model": "small"}})
        return self.store.create(asked, limit=100).id

    def group(self) -> int | None:
        """Of the command that runs now, if one does."""
        for record in self.data.glob(f"jobs/*/{PROCESS}"):
            group = (read_json(record) or {}).get("group")
            if group is not None and lives(group):
                return int(group)
        return None

    def job(self, id: str) -> JobRow:
        return self.store.get(id)

    def all_ended(self, jobs: list[str]) -> bool:
        return all(self.job(id).finished_at is not None for id in jobs)

    def runs(self, job: str) -> list[list[str]]:
        notes = next((self.data / "jobs" / job).glob("student/*/run/runs.txt"))
        return [line.split() for line in notes.read_text().splitlines()]


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def site(data: Path, url: str, *words: str) -> Iterator[Site]:
    opened = Site(data, url, *words)
    opened.start()
    try:
        yield opened
    finally:
        opened.kill()
        if (group := opened.group()) is not None:
            os.killpg(group, signal.SIGKILL)
        opened.store.database.close()


def kill_job(here: Site, chance: random.Random) -> None:
    """The command alone, its attendant alone, or both."""
    group = here.group()
    if group is None:
        return
    whom = chance.choice(["command", "attendant", "group"])
    try:
        if whom == "group":
            os.killpg(group, signal.SIGKILL)
        elif whom == "attendant":
            os.kill(group, signal.SIGKILL)
        else:
            for child in psutil.Process(group).children():
                child.kill()
    except (ProcessLookupError, psutil.NoSuchProcess):
        return  # it ended just now


def strike(here: Site, victim: str, chance: random.Random, server: Postgres | None) -> None:
    if victim == "database":
        assert server is not None
        server.stop()
        time.sleep(chance.uniform(0.1, 1.5))
        if chance.random() < 0.5:
            here.kill()
            here.start()
        server.start()
        return
    if victim in ("job", "both"):
        kill_job(here, chance)
    if victim in ("server", "both"):
        here.kill()
        time.sleep(chance.uniform(0, 0.5))
        here.start()


def every_job_is_in_a_true_state(here: Site, jobs: list[str]) -> None:
    published = (here.data / "published.txt").read_text().split("\n")[:-1]
    for job in jobs:
        row = here.job(job)
        assert (row.status, row.error, row.result["published"]) == ("succeeded", None, True)
        messages = [event.message for event in here.store.events(job, limit=10_000)]
        assert [message for message in messages if message.startswith("The student is")] == messages[-1:]
        assert any(line.startswith(job) for line in published), "it was published"
        nothing_ran_twice_at_once(here.runs(job))


def nothing_ran_twice_at_once(notes: list[list[str]]) -> None:
    """After a process has started, none that started before it does anything; and none is left out."""
    current, done = "", set()
    for kind, *rest in notes:
        current = rest[-1] if kind == "start" else current
        assert rest[-1] == current
        if kind == "iteration":
            done.add(int(rest[0]))
    assert done == set(range(1, ITERATIONS + 1))


def test_twenty_crashes_at_random_moments(tmp_path: Path, request: pytest.FixtureRequest, url: str) -> None:
    kind = url.partition(":")[0]
    server: Postgres | None = request.getfixturevalue("server") if kind == "postgresql" else None
    victims = ["server", "job", "both"] + (["database"] * 2 if server else [])
    chance = random.Random(f"crash matrix {kind}")
    with site(tmp_path, url) as here:
        jobs = [here.submit(iterations=ITERATIONS) for _ in range(JOBS)]
        for _ in range(MOMENTS):
            # A worker that is killed before it is up would let nothing happen that can be disturbed.
            wait_until(lambda: here.group() is not None or here.all_ended(jobs), WAIT)
            time.sleep(chance.uniform(0, 1.5))
            strike(here, chance.choice(victims), chance, server)
        wait_until(lambda: here.all_ended(jobs), WAIT)
        every_job_is_in_a_true_state(here, jobs)
        assert here.group() is None
        if kind == "sqlite":  # no database to kill: more kills of jobs
            assert sum(note[0] == "start" for job in jobs for note in here.runs(job)) > JOBS
    assert here.store.counts() == {"succeeded": JOBS}


@pytest.fixture
def kind_url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "jobs.db")


def test_a_server_that_is_killed_finds_its_job_running_and_goes_on_with_it(
    tmp_path: Path, kind_url: str
) -> None:
    """The process is never interrupted."""
    with site(tmp_path, kind_url) as here:
        job = here.submit(iterations=ITERATIONS)
        wait_until(lambda: here.job(job).progress.get("iteration", 0) >= 3, WAIT)
        group = here.group()
        here.kill()
        time.sleep(0.3)
        assert here.group() == group
        here.start()
        wait_until(lambda: here.all_ended([job]), WAIT)
        assert sum(note[0] == "start" for note in here.runs(job)) == 1
        every_job_is_in_a_true_state(here, [job])


def test_a_server_that_never_comes_back_leaves_a_job_that_stops_by_itself(
    tmp_path: Path, kind_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "4")
    with site(tmp_path, kind_url) as here:
        job = here.submit(iterations=100_000)
        wait_until(lambda: here.job(job).progress.get("iteration", 0) >= 3, WAIT)
        here.kill()
        wait_until(lambda: here.group() is None, WAIT)
        done = int(here.runs(job)[-1][1])
        folder = next((here.data / "jobs" / job).glob("student/*/run/checkpoints"))
        assert (folder / f"{done:06d}").is_dir()
        assert here.job(job).status == "running", "nobody could say so"


def test_a_server_that_is_stopped_saves_its_job_and_another_one_goes_on(
    tmp_path: Path, kind_url: str
) -> None:
    with site(tmp_path, kind_url) as here:
        job = here.submit(iterations=ITERATIONS)
        wait_until(lambda: here.job(job).progress.get("iteration", 0) >= 3, WAIT)
        here.stop()
        assert here.job(job).status == "queued"
        here.start()
        wait_until(lambda: here.all_ended([job]), WAIT)
        assert [int(note[1]) for note in here.runs(job) if note[0] == "iteration"] == list(
            range(1, ITERATIONS + 1)
        )


def test_two_servers_on_one_database_share_the_jobs(tmp_path: Path, kind_url: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with site(first, kind_url) as here, site(second, kind_url) as there:
        jobs = [here.submit(iterations=20) for _ in range(6)]
        wait_until(lambda: here.all_ended(jobs), WAIT)
        for job in jobs:
            places = [each for each in (here, there) if (each.data / "jobs" / job).exists()]
            assert len(places) == 1
            assert sum(note[0] == "start" for note in places[0].runs(job)) == 1


def test_a_database_that_is_gone_for_longer_than_the_lease_stops_the_job_and_it_goes_on_after(
    tmp_path: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "4")
    with site(tmp_path, server.url) as here:
        job = here.submit(iterations=ITERATIONS * 3)
        wait_until(lambda: here.job(job).progress.get("iteration", 0) >= 3, WAIT)
        server.stop()
        try:
            with pytest.raises(StoreGoneError):
                here.job(job)
            wait_until(lambda: here.group() is None, WAIT)
        finally:
            server.start()
        wait_until(lambda: here.all_ended([job]), WAIT)
        assert here.job(job).status == "succeeded"
        assert [int(note[1]) for note in here.runs(job) if note[0] == "iteration"] == list(
            range(1, ITERATIONS * 3 + 1)
        )
