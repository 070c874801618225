"""One command of a job, attended: stopped when asked or when nobody wants it any more, and its end written down.

It is a process of its own (`python -m service.jobs.attend`), so that the command outlives the server and yet
never runs for longer than its lease. Between the two lie files in one folder:

FOLDER/process.json  the process group of the command
FOLDER/alive         locked for as long as any process of the command lives
FOLDER/ticket        which command is the current one, where a late one could start beside it
FOLDER/lease         touched for as long as the job is wanted
FOLDER/stop          is there when the command is to stop
FOLDER/log.txt       what the command says
FOLDER/STAGE.out     what the command prints
FOLDER/STAGE.json    how it ended
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

TICK = 0.1
PROCESS, ALIVE, TICKET, LEASE, STOP, LOG = "process.json", "alive", "ticket", "lease", "stop", "log.txt"
NOT_STARTED = 127


class Attendant:
    """Runs one command to its end.

    Attributes:
        reason: Why it was stopped: `stopped` or `lease`; None as long as nobody stopped it.
    """

    def __init__(self, folder: Path, lease_seconds: float, grace_seconds: float) -> None:
        """
        Args:
            lease_seconds: How long the command goes on after the last touch of `lease`.
            grace_seconds: How long it may take to save its state before it is killed.
        """
        self.folder, self.lease_seconds, self.grace_seconds = folder, lease_seconds, grace_seconds
        self.reason: str | None = None
        self._touched: float | None = None
        self._seen = self._stopped = time.monotonic()
        self._signalled = False

    def run(self, stage: str, command: Sequence[str]) -> int:
        """Runs `command` as a stage of the job; returns its exit code, negative if a signal ended it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        write_json(self.folder / PROCESS, {"group": os.getpgrp(), "stage": stage})
        began = time.monotonic()
        code = self._run(stage, command)
        outcome = {"code": code, "reason": self.reason, "seconds": round(time.monotonic() - began, 3)}
        write_json(self.folder / f"{stage}.json", outcome)
        return code

    def _run(self, stage: str, command: Sequence[str]) -> int:
        with (self.folder / LOG).open("ab") as log, (self.folder / f"{stage}.out").open("wb") as out:
            try:
                # The lock on `alive` came with the file that this process inherited, and goes on to the command.
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, close_fds=False
                )
            except OSError as error:
                log.write(f"cannot start {command[0]}: {error.strerror}\n".encode())
                return NOT_STARTED
            while child.poll() is None:
                self._look(child)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(TICK)
            return child.returncode

    def _look(self, child: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        if self.reason is None:
            self.reason, self._stopped = self._unwanted(now), now
        if self.reason is None:
            return
        if not self._signalled:
            self._signalled = True
            child.terminate()
        elif now - self._stopped > self.grace_seconds:
            child.kill()

    def _unwanted(self, now: float) -> str | None:
        if (self.folder / STOP).exists():
            return "stopped"
        touched = _touched(self.folder / LEASE)
        if touched != self._touched:
            self._touched, self._seen = touched, now
        return "lease" if now - self._seen > self.lease_seconds else None

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self.reason is None:
            self.reason, self._stopped = "stopped", time.monotonic()


def _touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str | None:
    """None if it is not there."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def read_json(path: Path) -> dict[str, Any] | None:
    """None if it is not there."""
    text = read_text(path)
    if text is None:
        return None
    content: dict[str, Any] = json.loads(text)
    return content


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service.jobs.attend", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--lease-seconds", type=float, required=True)
    parser.add_argument("--grace-seconds", type=float, required=True)
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--ticket", help="do nothing if another one is the current one")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    if options.ticket and options.ticket != read_text(options.folder / TICKET):
        return 0
    os.nice(options.nice)
    attendant = Attendant(options.folder, options.lease_seconds, options.grace_seconds)
    code = attendant.run(options.stage, options.command)
    if os.getpgrp() == os.getpid():
        # The end is written down; whatever the command has left behind in the group goes with this process.
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
