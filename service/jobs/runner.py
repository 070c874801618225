"""Takes jobs from the store and sees each through its commands to its end.

The commands are processes that outlive this one. Whoever runs next on the same data folder finds them by their
lock and goes on with them; nobody ever starts a second one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ServiceError
from .attend import read_json, write_json
from .database import Outage, StoreGoneError
from .desk import Claim, Desk, Ending, Left, Over
from .heartbeat import Heartbeat
from .leases import LeaseLostError
from .local import Backend, Command, ask_to_stop, exclusive, outcome
from .stages import Plan
from .tail import Follower, Progress

log = logging.getLogger(__name__)

ATTENDED, SEEN, TRIES = "attended", "progress.json", "tries.json"
INTERRUPTED = 130

Conclude = Callable[[Claim, Callable[[], None]], Ending]
"""What is done with a student when all commands have done their work; may be called again after a crash. The
function that it gets waits a little, and raises when the job is to be left or has been cancelled."""


@dataclass(frozen=True)
class Limits:
    """How a runner runs.

    Attributes:
        lease_seconds: How long a claim lasts without a heartbeat.
        beat_seconds: Between heartbeats.
        poll_seconds: Between two looks at a command, or at the store when there is nothing to do.
        retries: How often a job is started again when it crashes without having got any further.
    """

    lease_seconds: float = 120.0
    beat_seconds: float = 5.0
    poll_seconds: float = 0.5
    retries: int = 2


class Runner:
    """Runs one job at a time, in a thread of its own."""

    def __init__(
        self,
        desk: Desk,
        backend: Backend,
        make_command: Callable[[Plan, str], Command],
        conclude: Conclude,
        limits: Limits,
        slot: Path,
    ) -> None:
        """
        Args:
            slot: A file that is locked while this runner works, so that no other one of this machine uses
                the same device.
        """
        self.desk, self.backend, self.limits = desk, backend, limits
        self.make_command, self.conclude, self.slot = make_command, conclude, slot
        self.stopping = threading.Event()
        self._outage = Outage(log)
        self._thread = threading.Thread(target=self.run, name=slot.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks the runner to end; `join` waits for it. The job on hand saves its state and goes back."""
        self.stopping.set()

    def join(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def run(self) -> None:
        while not self.stopping.is_set():
            with exclusive(self.slot) as alone:
                while alone and not self.stopping.is_set():
                    if not self._next():
                        self.stopping.wait(self.limits.poll_seconds)
            self.stopping.wait(self.limits.poll_seconds)

    def _next(self) -> bool:
        """Whether there was a job, and it was seen to."""
        worked = False
        with self._outage.outlived("the runner of jobs failed"):
            claim = self.desk.claim()
            self._outage.end()
            if claim is not None:
                self.attend(claim)
                worked = True
        return worked

    def attend(self, claim: Claim) -> None:
        """Sees a job through, or as far as is wished."""
        claim.plan.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(claim.plan.folder / ATTENDED) as alone:
            if not alone:
                log.warning("job=%s is attended by another process of this machine", claim.job)
                self.stopping.wait(self.limits.poll_seconds)
                return
            attempt = Attempt(self, claim)
            try:
                attempt.run()
            except LeaseLostError:
                log.warning("job=%s is no longer this runner's", claim.job)
                self.backend.kill(claim.plan.folder)


class Attempt:
    """One job on one runner."""

    def __init__(self, runner: Runner, claim: Claim) -> None:
        self.runner, self.claim, self.plan = runner, claim, claim.plan
        self.backend, self.desk, self.limits = runner.backend, runner.desk, runner.limits
        self.follower = Follower(self.plan.student, _remembered(self.plan.folder))

    def run(self) -> None:
        """
        Raises:
            LeaseLostError: another runner has the job.
        """
        progress = self.follower.progress
        with Heartbeat(self.desk, self.claim, progress, self.limits.beat_seconds) as self.heart:
            try:
                ending = self._work()
                self._insist(lambda: self.desk.finish(self.claim, ending))
                log.info("job=%s %s: %s", self.claim.job, ending.status, ending.message)
            except Left:
                log.info("job=%s left at iteration %d", self.claim.job, progress.iteration)

    def _work(self) -> Ending:
        try:
            self.plan.prepare()
            for stage in self.plan.stages:
                self.follower.progress.stage = stage
                self._see_through(stage)
            self.follower.progress.stage = "publish"
            return self.runner.conclude(self.claim, self._rest)
        except Over as over:
            return over.ending
        except StoreGoneError as error:
            raise Left from error  # the next claim finds all that is done
        except (ServiceError, OSError) as error:
            return Ending("failed", str(error), getattr(error, "code", None) or "job_failed")

    def _see_through(self, stage: str) -> None:
        """Until the stage's command has done its work, started again as often as is allowed."""
        while True:
            self._wait()
            ended = outcome(self.plan.folder, stage)
            if ended is not None and ended["code"] == 0:
                return
            self._heed_wishes()
            self._count(stage, ended)
            self._say(f"{stage} starts" if ended is None else f"{stage} goes on")
            self.backend.start(self.runner.make_command(self.plan, stage))

    def _wait(self) -> None:
        """Until no command of the job lives; it hears what is wished of it."""
        asked = False
        while self.backend.alive(self.plan.folder):
            if self._wished and not asked:
                asked = True
                ask_to_stop(self.plan.folder)
            self._follow()
            time.sleep(self.limits.poll_seconds)
        self._follow()

    @property
    def _wished(self) -> bool:
        if self.heart.lost:
            raise LeaseLostError
        return self.heart.wish != "run" or self.runner.stopping.is_set()

    def _heed_wishes(self) -> None:
        if not self._wished:
            return
        if self.heart.wish == "cancel":
            raise Over(Ending("cancelled", "The job was cancelled."))
        leave = self.desk.paused if self.heart.wish == "pause" else self.desk.give_back
        self._insist(lambda: leave(self.claim))
        raise Left

    def _rest(self) -> None:
        self._heed_wishes()
        time.sleep(self.limits.poll_seconds)

    def _count(self, stage: str, ended: Mapping[str, Any] | None) -> None:
        """Before each start of a command.

        What was stopped goes on; what failed by its own account does not; what crashed does, as long as it
        gets further from one crash to the next or has not crashed too often at one place.
        """
        folder = self.plan.folder
        crashed = ended is None or ended["reason"] is None
        if ended is not None and crashed and 0 < ended["code"] != INTERRUPTED:
            (folder / f"{stage}.json").unlink()
            raise Over(Ending("failed", f"{stage}: {self.plan.last_words()}", "job_failed"))
        before = read_json(folder / TRIES) or {}
        here = self.follower.progress.iteration
        further = before.get("stage") != stage or here > before["iteration"]
        tries = 1 if further or not crashed else before["tries"] + 1
        if tries > 1 + self.limits.retries:
            (folder / TRIES).unlink()
            message = f"{stage} crashed {before['tries']} times at iteration {here}: {self.plan.last_words()}"
            raise Over(Ending("failed", message, "job_crashed"))
        write_json(folder / TRIES, {"stage": stage, "iteration": here, "tries": tries})

    def _follow(self) -> None:
        news = self.follower.look()
        for checkpoint in news.checkpoints:
            self._insist(partial(self.desk.checkpoint, self.claim, checkpoint))
        for point in news.quality:
            figures = {name: value for name, value in point.items() if name not in ("type", "images")}
            self._say(f"quality at iteration {figures['iteration']}", **figures)
            write_json(self.plan.folder / SEEN, self.follower.progress.as_dict())

    def _say(self, message: str, **data: Any) -> None:
        self._insist(lambda: self.desk.say(self.claim, message, **data))

    def _insist(self, call: Callable[[], None]) -> None:
        """Until the store answers. A runner that is to end leaves: whoever comes next finds all in the files."""
        while True:
            try:
                return call()
            except StoreGoneError as error:
                log.warning("job=%s the store does not answer: %s", self.claim.job, error)
                if self.runner.stopping.is_set():
                    raise Left from error
                time.sleep(self.limits.poll_seconds)


def _remembered(folder: Path) -> Progress | None:
    """What a runner before this one has told already."""
    content = read_json(folder / SEEN)
    return None if content is None else Progress(**content)
