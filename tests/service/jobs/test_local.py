"""Commands of jobs as real processes: asked to stop, killed, orphaned, left behind, given up with their lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from service.errors import ServiceError
from service.jobs.attend import LOG, PROCESS, Attendant, read_json
from service.jobs.local import Command, Local, ask_to_stop, environment, outcome, renew

from ..running import wait_until

WAIT = 60.0
PROGRAM = """
import os, signal, sys, time, subprocess
from pathlib import Path
folder = Path(sys.argv[1])
saved = lambda *_: (print("saved", file=sys.stderr), sys.exit(130))
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else saved)
if "child" in sys.argv:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / "pid").write_text(str(os.getpid()))
while not (folder / "go").exists():
    time.sleep(0.01)
print("printed")
print("said", file=sys.stderr)
sys.exit(int((folder / "go").read_text() or 0))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job-1").mkdir()
    return tmp_path / "job-1"


def command(folder: Path, *words: str, lease: float = 60, grace: float = 60, nice: int = 0) -> Command:
    options = ("--lease-seconds", str(lease), "--grace-seconds", str(grace), "--nice", str(nice))
    line = (sys.executable, "-c", PROGRAM, str(folder), *words)
    return Command(folder, "distill", line, environment(1, ["3"]), options)


def pid_of(folder: Path) -> int:
    wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), WAIT)
    return int((folder / "pid").read_text())


def gone(local: Local, folder: Path) -> None:
    wait_until(lambda: not local.alive(folder), WAIT)


def test_a_command_runs_to_its_end_and_leaves_word(folder: Path) -> None:
    local = Local()
    assert not local.alive(folder)
    local.start(command(folder))
    pid_of(folder)
    assert local.alive(folder)
    assert outcome(folder, "distill") is None
    (folder / "go").write_text("3")
    gone(local, folder)
    ended = outcome(folder, "distill")
    assert ended is not None
    assert (ended["code"], ended["reason"]) == (3, None)
    assert (folder / "distill.out").read_text() == "printed\n"
    assert "said" in (folder / LOG).read_text()


def test_a_job_never_has_two_processes_whoever_starts_them(folder: Path) -> None:
    Local().start(command(folder))
    with pytest.raises(ServiceError, match=r"a process of job-1 is still alive"):
        Local().start(command(folder))
    pid_of(folder)
    with pytest.raises(ServiceError, match="still alive"):
        Local().start(command(folder))
    Local().kill(folder)
    assert not Local().alive(folder)


def test_asked_to_stop_it_saves_and_says_so(folder: Path) -> None:
    local = Local()
    local.start(command(folder))
    pid_of(folder)
    ask_to_stop(folder)
    gone(local, folder)
    ended = outcome(folder, "distill")
    assert ended is not None
    assert (ended["code"], ended["reason"]) == (130, "stopped")
    assert "saved" in (folder / LOG).read_text()
    (folder / "go").write_text("0")
    local.start(command(folder))  # the wish to stop was for the one before
    gone(local, folder)
    again = outcome(folder, "distill")
    assert again is not None
    assert again["code"] == 0


def test_what_does_not_listen_is_killed_when_its_grace_is_over(folder: Path) -> None:
    local = Local()
    local.start(command(folder, "deaf", grace=0.3))
    pid_of(folder)
    ask_to_stop(folder)
    gone(local, folder)
    ended = outcome(folder, "distill")
    assert ended is not None
    assert (ended["code"], ended["reason"]) == (-signal.SIGKILL, "stopped")


@pytest.mark.slow
def test_without_its_lease_it_stops_by_itself_and_with_it_it_goes_on(folder: Path) -> None:
    local = Local()
    local.start(command(folder, lease=1.5))
    pid = pid_of(folder)
    began = time.monotonic()
    while time.monotonic() - began < 3:
        renew(folder)
        time.sleep(0.05)
    assert psutil.pid_exists(pid)
    gone(local, folder)
    ended = outcome(folder, "distill")
    assert ended is not None
    assert (ended["code"], ended["reason"]) == (130, "lease")


def test_a_killed_attendant_leaves_a_process_that_is_still_known_and_can_be_killed(folder: Path) -> None:
    local = Local()
    local.start(command(folder))
    pid = pid_of(folder)
    record = read_json(folder / PROCESS)
    assert record is not None
    os.kill(record["group"], signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(record["group"]) or _zombie(record["group"]), WAIT)
    assert local.alive(folder)
    local.kill(folder)
    assert not local.alive(folder)
    wait_until(lambda: not psutil.pid_exists(pid), WAIT)
    assert outcome(folder, "distill") is None


def test_kill_ends_the_whole_group_and_the_end_of_a_command_that_of_its_children(folder: Path) -> None:
    local = Local()
    for end in ("kill", "go"):
        (folder / "pid").unlink(missing_ok=True)
        local.start(command(folder, "child"))
        child = psutil.Process(pid_of(folder)).children()[0]
        if end == "kill":
            local.kill(folder)
        else:
            (folder / "go").write_text("0")
            gone(local, folder)
        wait_until(lambda child=child: not child.is_running(), WAIT)


def test_the_process_outlives_the_server_that_started_it_and_is_found_again(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from service.jobs.local import Local;"
        "from tests.service.jobs.test_local import command, pid_of;"
        "folder = Path(sys.argv[1]); Local().start(command(folder)); pid_of(folder);"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    server = subprocess.run([sys.executable, "-c", program, str(folder)], timeout=WAIT)
    assert server.returncode == -signal.SIGKILL
    restarted = Local()
    assert restarted.alive(folder)
    (folder / "go").write_text("0")
    gone(restarted, folder)
    ended = outcome(folder, "distill")
    assert ended is not None
    assert ended["code"] == 0


def test_a_job_keeps_to_its_share(folder: Path) -> None:
    local = Local()
    local.start(command(folder, nice=7))
    process = psutil.Process(pid_of(folder))
    assert process.nice() == psutil.Process().nice() + 7
    assert process.environ()["OMP_NUM_THREADS"] == "1"
    assert process.environ()["CUDA_VISIBLE_DEVICES"] == "3"
    assert os.getsid(process.pid) != os.getsid(0)
    local.kill(folder)


def test_a_command_that_is_not_there_ends_with_127(folder: Path) -> None:
    local = Local()
    options = ("--lease-seconds", "60", "--grace-seconds", "1")
    local.start(Command(folder, "export", ("/no/such/program",), {}, options))
    gone(local, folder)
    ended = outcome(folder, "export")
    assert ended is not None
    assert ended["code"] == 127
    assert "cannot start /no/such/program: No such file or directory" in (folder / LOG).read_text()


def test_a_lease_that_was_never_given_counts_from_the_start(tmp_path: Path) -> None:
    attendant = Attendant(tmp_path, lease_seconds=0.0, grace_seconds=1.0)
    time.sleep(0.01)
    assert attendant._unwanted(time.monotonic()) == "lease"


def _zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
