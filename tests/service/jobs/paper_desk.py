"""A store of jobs in memory, for tests of the runner alone; can be made to go away and to wish things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.jobs.database import StoreGoneError
from service.jobs.desk import Claim, Ending
from service.jobs.leases import LeaseLostError
from service.jobs.tables import Wish
from service.jobs.tail import Checkpoint, Progress


@dataclass
class PaperDesk:
    """Jobs wait in `waiting`; what became of them is in the other fields."""

    waiting: list[Claim] = field(default_factory=list)
    wishes: dict[str, Wish] = field(default_factory=dict)
    said: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    endings: dict[str, Ending] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    gone: bool = False
    stolen: bool = False
    when_told: Callable[[Progress], None] = lambda progress: None

    def claim(self) -> Claim | None:
        self._answer()
        return self.waiting.pop(0) if self.waiting else None

    def heartbeat(self, claim: Claim, progress: Progress) -> Wish:
        self._answer()
        if self.stolen:
            raise LeaseLostError
        self.progress[claim.job] = progress.as_dict()
        self.when_told(progress)
        return self.wishes.get(claim.job, "run")

    def say(self, claim: Claim, message: str, **data: Any) -> None:
        self._answer()
        self.said.append((claim.job, message, data))

    def checkpoint(self, claim: Claim, checkpoint: Checkpoint) -> None:
        self._answer()
        self.checkpoints.append(checkpoint)

    def give_back(self, claim: Claim) -> None:
        self._answer()
        self.left[claim.job] = "queued"

    def paused(self, claim: Claim) -> None:
        self._answer()
        self.left[claim.job] = "paused"

    def finish(self, claim: Claim, ending: Ending) -> None:
        self._answer()
        assert claim.job not in self.endings, "a job ends once"
        self.endings[claim.job] = ending

    def _answer(self) -> None:
        if self.gone:
            raise StoreGoneError("no answer")
