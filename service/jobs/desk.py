"""What a runner and the store say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .gate import Publish
from .stages import Plan
from .tail import Progress

Wish = Literal["run", "pause", "cancel"]
"""What is wanted of a job that runs."""


class LeaseLostError(Exception):
    """The job is another runner's by now, or nobody's."""


class StoreGoneError(Exception):
    """The store does not answer; it may come back."""


@dataclass(frozen=True)
class Claim:
    """A job that a runner holds.

    Attributes:
        publish: What is to become of the student; None: it is kept and not served.
    """

    job: str
    plan: Plan
    publish: Publish | None = None


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        status: `succeeded`, `failed` or `cancelled`.
        code, message: Of the error, if it failed.
        result: What there is of it: student, bundle, verdict, whether it is published and why not.
    """

    status: Literal["succeeded", "failed", "cancelled"]
    message: str | None = None
    code: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


class Desk(Protocol):
    """What a runner asks of the store.

    Every call may raise `StoreGoneError`; those about a job raise `LeaseLostError` when it is no longer the
    runner's.
    """

    def claim(self) -> Claim | None:
        """A job for this runner: one that it held before it was restarted, else the one that waits longest."""

    def heartbeat(self, claim: Claim, progress: Progress) -> Wish:
        """Renews the lease, tells how far the job is, and hears what is wished of it."""

    def say(self, claim: Claim, message: str, level: str = "info", **data: Any) -> None:
        """An event for whoever watches the job."""

    def give_back(self, claim: Claim) -> None:
        """The job waits for a runner again."""

    def paused(self, claim: Claim) -> None:
        """It waits until somebody resumes it."""

    def finish(self, claim: Claim, ending: Ending) -> None:
        """It has come to its end."""
