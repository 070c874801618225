"""`fewstep jobs watch`: to the end of a job, over servers that go and come back, on a terminal and elsewhere."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fewstep.jobs import client, watching
from service.settings import Settings
from tests.service.fake_runtime import FakeRuntime
from tests.service.running import run_server, wait_until

from .conftest import Jobs, Office, Said

WAIT = 60.0


@contextmanager
def meanwhile(run: Callable[[], Said]) -> Iterator[Callable[[], Said]]:
    """Runs in a thread beside the block; the result is to be had after it."""
    found: list[Said] = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()

    def result() -> Said:
        thread.join(WAIT)
        assert not thread.is_alive()
        return found[0]

    yield result
    result()


def messages(out: str) -> list[str]:
    """What was printed, without the time of day."""
    return [line[9:] for line in out.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]


def test_until_it_has_succeeded(office: Office, jobs: Jobs) -> None:
    job = office.submit()
    lease = office.take()
    with meanwhile(lambda: jobs("watch", job)) as result:
        time.sleep(1)
        office.progress(lease, 31, quality={"accuracy_1": 0.95})
        office.store.say(lease, "distill: iteration 31 of 100", kind="metrics", data={"stage": "distill"})
        office.store.say(lease, "quality at iteration 31", kind="metrics", data={"accuracy_1": 0.95})
        time.sleep(1.2)
        office.store.say(lease, "evaluate starts")
        office.succeed(lease, student={"url": "/artifacts/student"})
    said = result()
    assert (said.code, said.err) == (0, "")
    told = messages(said.out)
    assert told[:2] == ["The job waits for a runner.", "The job is running."]
    assert "quality at iteration 31" in told
    assert "distill: iteration 31 of 100" not in told, "the job's own lines say that"
    assert told[-3:] == ["evaluate starts", "The student is not published.", "succeeded"]
    assert said.out.splitlines()[-2:] == ["not published: nobody asked for it", "student: /artifacts/student"]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_otherwise_it_is_exit_code_1(office: Office, jobs: Jobs, status: str) -> None:
    job = office.submit()
    lease = office.take()
    if status == "failed":
        office.fail(lease)
    else:
        office.store.finish(lease, "cancelled", "The job was cancelled.")
    said = jobs("watch", job)
    assert said.code == 1
    assert messages(said.out)[-1] == status
    assert ("failed: the disk is full" in said.out) == (status == "failed")


def test_submitting_can_go_on_watching(office: Office, jobs: Jobs) -> None:
    with meanwhile(lambda: jobs("submit", "shapes-sana", "--watch", "--json")) as result:
        wait_until(lambda: office.store.counts() == {"queued": 1}, WAIT)
        office.succeed(office.take())
    said = result()
    assert said.code == 0
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["event"]["message"] for line in lines if "event" in line] == [
        "The job waits for a runner.",
        "The job is running.",
        "The student is not published.",
    ]
    assert [line["job"]["status"] for line in lines if "job" in line][-1] == "succeeded"


def test_without_an_id_it_is_the_newest_job(office: Office, jobs: Jobs) -> None:
    office.submit()
    office.fail(office.take())
    newest = office.submit()
    office.succeed(office.take())
    said = jobs("watch", "--json")
    assert said.code == 0
    assert {json.loads(line)["job"]["id"] for line in said.out.splitlines() if '{"job"' in line} == {newest}


def test_grids_are_kept_as_they_come(office: Office, jobs: Jobs, tmp_path: Path) -> None:
    job = office.submit()
    lease = office.take()
    folder = tmp_path / "new" / "grids"
    with meanwhile(lambda: jobs("watch", job, "--samples", folder)) as result:
        office.progress(lease, 10, sample="samples/000010.png")
        time.sleep(1)
        red = office.checkpoint(lease, 5, "red")
        office.progress(lease, 11, sample="samples/000010.png")
        wait_until(lambda: (folder / "000005.png").exists(), WAIT)
        blue = office.checkpoint(lease, 10, "blue")
        office.progress(lease, 12, sample="samples/000010.png")
        wait_until(lambda: (folder / "000010.png").exists(), WAIT)
        office.succeed(lease)
    assert f"samples: {folder / '000010.png'}" in messages(result().out)
    assert sorted(path.name for path in folder.iterdir()) == ["000005.png", "000010.png"]
    assert [(folder / name).read_bytes() for name in ("000005.png", "000010.png")] == [red, blue]


def test_without_a_folder_it_is_said_where_the_newest_grid_is(office: Office, jobs: Jobs) -> None:
    job = office.submit()
    lease = office.take()
    grid = office.checkpoint(lease, 5, "red")
    office.progress(lease, 5, sample="samples/000005.png")
    office.succeed(lease)
    [line] = [line for line in messages(jobs("watch", job).out) if line.startswith("samples: ")]
    assert office.running.client.get(line.removeprefix("samples: ")).content == grid


def test_a_grid_that_is_not_to_be_had_does_not_end_it(office: Office, jobs: Jobs, tmp_path: Path) -> None:
    job = office.submit()
    lease = office.take()
    office.store.checkpoint(lease, 5, {}, "elsewhere.png")
    office.progress(lease, 5, sample="samples/000005.png")
    office.succeed(lease)
    said = jobs("watch", job, "--samples", tmp_path / "grids")
    assert said.code == 0
    assert "samples: The checkpoint's grid is not here." in messages(said.out)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_a_server_that_goes_and_comes_back_is_taken_up_where_it_was(
    settings: Settings, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("FEWSTEP_URL", f"http://127.0.0.1:{port}")
    with run_server(settings, {"fake": FakeRuntime()}, port=port) as running:
        office = Office(running)
        job = office.submit()
        lease = office.take()
        follower = meanwhile(lambda: jobs("watch", job, "--json"))
        result = follower.__enter__()
        time.sleep(1.5)
        office.store.say(lease, "before")
        time.sleep(1.5)
    time.sleep(1.0)
    with run_server(settings, {"fake": FakeRuntime()}, port=port) as running:
        office = Office(running)
        office.store.say(lease, "after")
        office.succeed(lease)
        follower.__exit__(None, None, None)
    said = result()
    assert said.code == 0
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["event"]["message"] for line in lines if "event" in line] == [
        "The job waits for a runner.",
        "The job is running.",
        "before",
        "after",
        "The student is not published.",
    ]
    connection = [line["connection"] for line in lines if "connection" in line]
    assert "does not answer" in connection[0]
    assert connection[-1] == "back"


@pytest.mark.slow
def test_a_job_that_is_gone_when_the_server_is_back_ends_it(
    settings: Settings, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("FEWSTEP_URL", f"http://127.0.0.1:{port}")
    with run_server(settings, {"fake": FakeRuntime()}, port=port) as running:
        job = Office(running).submit()
        follower = meanwhile(lambda: jobs("watch", job))
        result = follower.__enter__()
        time.sleep(1.5)
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    with run_server(other, {"fake": FakeRuntime()}, port=port):
        follower.__exit__(None, None, None)
    said = result()
    assert (said.code, "There is no job" in said.err) == (2, True)


def test_the_wait_for_a_server_grows_and_is_bounded() -> None:
    class Away:
        """Answers the seventh time."""

        asked = 0

        def events(self, job: str, last: str | None) -> Iterator[tuple[str | None, Any]]:
            self.asked += 1
            if self.asked < 7:
                raise client.UnreachableError("away")
            yield None, {"id": job, "status": "succeeded", "progress": {}}

    class Quiet:
        gone_back: list[str] = []  # noqa: RUF012

        def job(self, job: Any) -> None:
            """Not looked at."""

        def gone(self, why: str) -> None:
            self.gone_back.append(why)

        def back(self) -> None:
            self.gone_back.append("back")

    waits: list[float] = []
    view: Any = Quiet()
    started: Any = {"id": "ftjob-1", "status": "running", "progress": {}}
    server: Any = Away()
    ended = watching.Watch(server, started, view, sleep=waits.append).follow()
    assert ended["status"] == "succeeded"
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert view.gone_back == ["away"] * 6 + ["back"]


@pytest.mark.slow
def test_a_line_that_is_silent_for_too_long_is_taken_up_again(
    office: Office, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's signs of life come every 15 seconds; here they are awaited for one."""
    monkeypatch.setattr(client, "SILENCE_SECONDS", 1.0)
    job = office.submit()
    with meanwhile(lambda: jobs("watch", job)) as result:
        time.sleep(3)
        office.succeed(office.take())
    told = messages(result().out)
    assert any("does not answer (timed out)" in line for line in told)
    assert told.count("The job waits for a runner.") == 1, "and nothing is told twice"
    assert told[-1] == "succeeded"


def command(url: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "fewstep", "jobs", "watch", *words, "--url", url]


def test_ctrl_c_ends_the_watching_and_not_the_job(office: Office) -> None:
    job = office.submit()
    watcher = subprocess.Popen(
        command(office.running.url, job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    _, said = watcher.communicate(timeout=WAIT)
    assert watcher.returncode == 130
    assert said == f"fewstep jobs: {job} goes on; fewstep jobs watch {job}\n"
    assert office.store.get(job).status == "queued"


def test_on_a_terminal_it_is_a_table_with_a_bar(office: Office) -> None:
    job = office.submit()
    lease = office.take()
    screen, other = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    watcher = subprocess.Popen(command(office.running.url, job), stdout=other, env=environment)
    os.close(other)
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                part = os.read(screen, 4096)
            except OSError:  # the other end is closed
                return
            if not part:
                return
            shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: b"The job is running." in shown, WAIT)
    for iteration in (10, 31):
        office.progress(lease, iteration, quality={"accuracy_1": 0.5 + iteration / 100})
        wait_until(partial(shown.__contains__, b"%d of 100" % iteration), WAIT)
    office.fail(lease)
    assert watcher.wait(WAIT) == 1
    reader.join(WAIT)
    os.close(screen)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for part in (job, "running", "distill", "━", "31 %", "1,488 images", "12.5 images/s, ETA 0:01:09"):
        assert part in text, part
    assert re.search(r"losses +generator 0\.03226 █▁ +fake 0\.5", text)
    assert re.search(r"quality +accuracy_1 0\.81 ▁█", text)
    assert "failed: the disk is full" in text
