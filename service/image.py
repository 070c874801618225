"""One picture on its way through the phases."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from engines.bundle import Size
from engines.runtime.base import Conditioning, Floats

from .pictures import Format, Pixels

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
    order: tuple[float, ...] = field(default_factory=lambda: (next(_sequence),))
    file: Future[bytes] = field(default_factory=Future)
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each phase; `queue` is added at the end and is what is left of the total."""
    admitted: float = field(default_factory=time.perf_counter)
    step: int = 0
    conditioning: Conditioning | None = None
    x_CHW: Floats | None = None
    x0_CHW: Floats | None = None
    pixels_HWC: Pixels | None = None

    def __post_init__(self) -> None:
        # A waiting request that is given up must not cancel the future under a worker's hands.
        self.file.set_running_or_notify_cancel()

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def finish(self, content: bytes) -> None:
        self.spend("queue", max(0.0, time.perf_counter() - self.admitted - sum(self.seconds.values())))
        self.file.set_result(content)

    def fail(self, error: Exception) -> None:
        self.file.set_exception(error)
