"""What a runner and the store say to each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..errors import ServiceError
from .gate import Publish
from .leases import Lease
from .stages import DISTILL, Plan
from .store import JobStore
from .tables import JobRow, Wish
from .tail import Checkpoint, Progress

EVENT_SECONDS = 10.0
"""Between two events that only say how far a job is; each heartbeat says so in the job itself."""


@dataclass(frozen=True)
class Claim:
    """A job that a runner holds.

    Attributes:
        publish: What is to become of the student; None: it is kept and not served.
    """

    lease: Lease
    plan: Plan
    publish: Publish | None = None

    @property
    def job(self) -> str:
        return self.lease.job


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        status: `succeeded`, `failed` or `cancelled`.
        code, message: Of the error, if it failed.
        result: What there is of it: student, bundle, verdict, whether it is published and why not.
    """

    status: Literal["succeeded", "failed", "cancelled"]
    message: str
    code: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


class Left(Exception):
    """The job is not done, and is to be left as it is."""


class Over(Exception):
    """The job has come to its end early."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.message)
        self.ending = ending


class Desk(Protocol):
    """What a runner asks of the store.

    Every call may raise `StoreGoneError`; those about a job raise `LeaseLostError` when it is no longer the
    runner's.
    """

    def claim(self) -> Claim | None:
        """A job for this runner: one that it held before it was restarted, else the one that waits longest."""

    def heartbeat(self, claim: Claim, progress: Progress) -> Wish:
        """Renews the lease, tells how far the job is, and hears what is wished of it."""

    def say(self, claim: Claim, message: str, **data: Any) -> None:
        """An event for whoever watches the job."""

    def checkpoint(self, claim: Claim, checkpoint: Checkpoint) -> None:
        """A state that the job can go on from, with what the student draws."""

    def give_back(self, claim: Claim) -> None:
        """The job waits for a runner again."""

    def paused(self, claim: Claim) -> None:
        """It waits until somebody resumes it."""

    def finish(self, claim: Claim, ending: Ending) -> None:
        """It has come to its end."""


class StoreDesk:
    """The desk of one runner, at a job store."""

    def __init__(
        self,
        store: JobStore,
        owner: str,
        lease_seconds: float,
        plan: Callable[[JobRow], tuple[Plan, Publish | None]],
    ) -> None:
        """
        Args:
            owner: This runner's name; the same one after a restart.
            plan: What is to be done for a job; raises `ServiceError` if that is nothing.
        """
        self._store, self._owner, self._lease_seconds, self._plan = store, owner, lease_seconds, plan
        self._told = 0.0

    def claim(self) -> Claim | None:
        claimed = self._store.claim(self._owner, self._lease_seconds)
        if claimed is None:
            return None
        job, lease = claimed
        try:
            return Claim(lease, *self._plan(job))
        except ServiceError as error:
            reason = {"message": str(error), "code": error.code or "job_failed", "param": error.param}
            self._store.finish(lease, "failed", str(error), error=reason)
            return None

    def heartbeat(self, claim: Claim, progress: Progress) -> Wish:
        told = progress.as_dict()
        wish = self._store.heartbeat(claim.lease, self._lease_seconds, told)
        moving = progress.stage == DISTILL and progress.iteration
        if moving and time.monotonic() - self._told > EVENT_SECONDS:
            self._told = time.monotonic()
            where = f"{progress.stage}: iteration {progress.iteration} of {progress.iterations}"
            self._store.say(claim.lease, where, kind="metrics", data={"step": progress.iteration, **told})
        return wish

    def say(self, claim: Claim, message: str, **data: Any) -> None:
        self._store.say(claim.lease, message, kind="metrics" if data else "message", data=data)

    def checkpoint(self, claim: Claim, checkpoint: Checkpoint) -> None:
        self._store.checkpoint(claim.lease, checkpoint.step, checkpoint.metrics, checkpoint.sample)

    def give_back(self, claim: Claim) -> None:
        self._store.give_back(claim.lease)

    def paused(self, claim: Claim) -> None:
        self._store.stand_by(claim.lease)

    def finish(self, claim: Claim, ending: Ending) -> None:
        error = None
        if ending.status == "failed":
            error = {"message": ending.message, "code": ending.code, "param": None}
        model = claim.plan.name if ending.status == "succeeded" else None
        self._store.finish(claim.lease, ending.status, ending.message, model, ending.result, error)
