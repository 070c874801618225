"""One picture on its way through the phases."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from engines.bundle import Size
from engines.runtime.base import Conditioning, Floats

from .errors import ServiceError
from .pictures import Format, Pixels

ONLINE, OFFLINE = 0, 1
"""Lanes: somebody waits for it; it may take the places that the others leave."""

_sequence = itertools.count()


@dataclass(eq=False)
class Image:
    """What is asked for, what the phases have made of it so far, and the promise of a file."""

    prompt: str
    seed: int
    steps: int
    size: Size
    format: Format = "png"
    compression: int = 100
    client: str = ""
    lane: int = ONLINE
    deadline: float = math.inf
    """On the clock of `time.perf_counter`."""
    on_estimate: Callable[[int, Floats], None] | None = None
    """Told the index and the clean estimate [C, H, W] of each step but the last."""
    file: Future[bytes] = field(default_factory=Future)
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each phase; `queue` is added at the end and is what is left of the total."""
    intervals: list[tuple[str, float, float]] = field(default_factory=list)
    """Of each batch that it was in: phase, begin, end."""
    admitted: float = field(default_factory=time.perf_counter)
    predicted: float = math.inf
    """Seconds that it should take, as far as could be told when it was admitted."""
    wanted: int = 1
    """Requests that wait for it; none when all their clients have left."""
    step: int = 0
    conditioning: Conditioning | None = None
    x_CHW: Floats | None = None
    x0_CHW: Floats | None = None
    pixels_HWC: Pixels | None = None
    preliminary: bool = False
    """The estimate of a step before the last: not the picture that prompt, seed and steps make."""
    attempts: int = 0
    sequence: int = field(default_factory=lambda: next(_sequence))
    _at_end: list[Callable[[Image, bytes | Exception], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A waiting request that is given up must not cancel the future under a worker's hands.
        self.file.set_running_or_notify_cancel()

    @property
    def order(self) -> tuple[float, ...]:
        """Earliest deadline first, then as they came."""
        return self.lane, self.deadline, self.sequence

    @property
    def cancelled(self) -> bool:
        return self.wanted <= 0

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        now = time.perf_counter()
        self.intervals.append((stage, now - seconds, now))

    def finish(self, content: bytes) -> None:
        self.seconds["queue"] = max(0.0, time.perf_counter() - self.admitted - sum(self.seconds.values()))
        self._end(content)
        self.file.set_result(content)

    def fail(self, error: Exception) -> None:
        self.conditioning = self.x_CHW = self.x0_CHW = None
        self._end(error)
        self.file.set_exception(error)

    def at_end(self, call: Callable[[Image, bytes | Exception], None]) -> None:
        """Calls with the image and its file or error, before whoever waits for the file is told.

        A callback of `file` that knows the image would make a circle of the two, which only a rare full
        garbage collection takes apart: the memory of a busy server would grow until then.
        """
        self._at_end.append(call)

    def _end(self, outcome: bytes | Exception) -> None:
        calls, self._at_end = self._at_end, []
        for call in calls:
            call(self, outcome)

    def retry(self) -> bool:
        """Whether it may be tried again after an engine was lost with it inside: once."""
        self.attempts += 1
        return self.attempts == 1


class CancelledError(ServiceError):
    """Nobody waits for the picture any more."""

    def __init__(self) -> None:
        super().__init__("The request was cancelled.", status=499, code="cancelled")
