"""Commands of jobs as processes of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from ..errors import ServiceError
from .attend import ALIVE, LEASE, PROCESS, STOP, read_json

SETTLING_SECONDS = 10.0
"""Between the end of a process group and the moment at which the kernel has let go of its lock."""


@dataclass(frozen=True)
class Command:
    """A stage of a job as what is run.

    Attributes:
        folder: The job's; the files of `attend.py` lie there.
        stage: Names its files.
        arguments: The command line.
        environment: On top of the server's.
        options: Flags of `attend.py`.
    """

    folder: Path
    stage: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    options: tuple[str, ...]

    @property
    def line(self) -> list[str]:
        """The command with its attendant."""
        attend = [sys.executable, "-m", "service.jobs.attend", str(self.folder), self.stage]
        return [*attend, *self.options, "--", *self.arguments]

    def with_ticket(self, ticket: str) -> Command:
        """The same, which does nothing once another ticket is the job's current one."""
        return replace(self, options=(*self.options, "--ticket", ticket))


class Backend(Protocol):
    """Where the commands of jobs run. A job has one command at a time."""

    def start(self, command: Command) -> None:
        """
        Raises:
            ServiceError: it cannot be started, or another command of that job lives.
        """

    def alive(self, folder: Path) -> bool:
        """Whether a command of the job in `folder` lives, whoever started it."""

    def kill(self, folder: Path) -> None:
        """Ends it at once and for certain."""


class Local:
    """Each command is a session of its own and holds the lock on `alive` until its last process has gone.

    So it is the kernel that says whether a job runs: not a number, which another process may have by then,
    and not the server, which may have been killed.
    """

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, command: Command) -> None:
        self._reap()
        with exclusive(command.folder / ALIVE) as lock:
            if lock is None:
                raise ServiceError(f"a process of {command.folder.name} is still alive", status=500)
            forget_the_one_before(command)
            self._children.append(_spawn(command, lock))

    def alive(self, folder: Path) -> bool:
        self._reap()
        with exclusive(folder / ALIVE) as lock:
            return lock is None

    def kill(self, folder: Path) -> None:
        deadline = time.monotonic() + SETTLING_SECONDS
        while self.alive(folder):
            record = read_json(folder / PROCESS)
            if record is not None:
                # A group that lives has its number to itself, and the lock says that it lives.
                _kill_group(int(record["group"]))
            if time.monotonic() > deadline:
                raise ServiceError(f"the process of {folder.name} cannot be killed", status=500)
            time.sleep(0.02)

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]


def _spawn(command: Command, lock: IO[bytes]) -> subprocess.Popen[bytes]:
    """The attendant inherits the lock: it is held from before its first instruction on."""
    try:
        return subprocess.Popen(
            command.line,
            env={**os.environ, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
    except OSError as error:
        raise ServiceError(f"cannot start {command.stage}: {error.strerror}", status=500) from error


@contextmanager
def exclusive(path: Path) -> Iterator[IO[bytes] | None]:
    """The lock on a file; None while another process of this machine holds it."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
        os.killpg(group, signal.SIGKILL)


def forget_the_one_before(command: Command) -> None:
    """Clears what the job's last command has left, and begins the lease of the next."""
    for name in (PROCESS, STOP, f"{command.stage}.json"):
        (command.folder / name).unlink(missing_ok=True)
    (command.folder / LEASE).touch()


def ask_to_stop(folder: Path) -> None:
    """The command saves its state and ends; how, is in its stage's file."""
    (folder / STOP).touch()


def renew(folder: Path) -> None:
    """Lets the command go on for another `lease_seconds`."""
    (folder / LEASE).touch()


def outcome(folder: Path, stage: str) -> dict[str, Any] | None:
    """How the command of a stage ended; None if it has not, or was killed together with its attendant."""
    return read_json(folder / f"{stage}.json")


def environment(threads: int | None, devices: Sequence[str]) -> dict[str, str]:
    """What keeps a job to its share of this machine."""
    own = {"PYTHONUNBUFFERED": "1"}
    if threads is not None:
        own |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if devices:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return own
