"""The runtime as the phases call it: prompts are encoded once, and an engine that died is restarted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from engines.bundle import SamplerSpec
from engines.errors import EngineError
from engines.runtime.base import Conditioning, Floats, Runtime
from engines.runtime.sampler import Pending, advance, generate

from .caches import ByteCache
from .errors import ServiceError
from .image import Image
from .memory import give_back
from .metrics import EngineMeters
from .pictures import Pixels

log = logging.getLogger(__name__)

CANARY = "a red circle on a white background"
CANARY_SEED = 0
CANARY_DIFFERENCE = 1.0
"""Mean difference in pixel levels from its first picture up to which an engine still draws it."""


class Engine:
    """Work of the phases on one bundle.

    Attributes:
        runtime: Executes the bundle; another one after a restart.
        embeddings: Prompt -> its conditioning, one row.
    """

    def __init__(self, load: Callable[[], Runtime], meters: EngineMeters) -> None:
        self.runtime, self._load = load(), load
        self._meters = meters
        self.embeddings: ByteCache[Conditioning] = ByteCache(0)
        self.batch_sizes = tuple(sorted(self.runtime.bundle.manifest.batch_sizes))
        self._canary: npt.NDArray[np.float64] | None = None
        self._restarted, self._opened = 0.0, False
        self._lock = threading.Lock()

    @property
    def spec(self) -> SamplerSpec:
        return self.runtime.bundle.spec

    def open(self, embedding_bytes: int) -> None:
        """After the warm-up, which measures every prompt anew: caches from here on, and counts."""
        self.embeddings.capacity, self._opened = embedding_bytes, True

    def encode(self, images: Sequence[Image]) -> list[Conditioning]:
        """One row of conditioning for each image; equal prompts are encoded once.

        There is one encoder at work at a time, so a prompt that is being encoded is in the cache by
        the time that the next batch asks for it.
        """
        rows = {image.prompt: self.embeddings.get(image.prompt) for image in images}
        missing = [prompt for prompt, row in rows.items() if row is None]
        found = {prompt: row for prompt, row in rows.items() if row is not None}
        if missing:
            found |= dict(zip(missing, self._encode(missing)))
        if self._opened:
            self._meters.misses.inc(len(missing))
            self._meters.hits.inc(len(images) - len(missing))
        return [found[image.prompt] for image in images]

    def denoise(self, images: Sequence[Image]) -> list[tuple[Floats, Floats]]:
        """Each image's own next step: inputs and clean estimates."""
        spec = self.spec
        pending = [Pending(one.seed, one.steps, one.step, one.x_CHW, one.x0_CHW) for one in images]
        conditioning = _stacked([image.conditioning for image in images if image.conditioning is not None])
        shape = spec.latent_shape(images[0].size)  # a batch has one size
        return list(zip(*advance(self.runtime, spec, pending, shape, conditioning)))

    def decode(self, images: Sequence[Image]) -> list[Pixels]:
        x0_BCHW = np.stack([image.x0_CHW for image in images if image.x0_CHW is not None])
        return list(self.runtime.decode(x0_BCHW))

    def draws(self) -> bool:
        """Whether the canary comes out as it did the first time."""
        try:
            batch = self.batch_sizes[0]
            pictures = generate(self.runtime, [CANARY] * batch, [CANARY_SEED] * batch, min(self.spec.levels))
        except Exception as error:  # whatever a backend raises
            log.error("the canary picture failed: %r", error)
            return False
        picture = pictures[0].astype(float)
        if self._canary is None:
            self._canary = picture
        difference = float(np.abs(picture - self._canary).mean())
        if difference > CANARY_DIFFERENCE:
            log.error("the canary picture is off by %.1f levels", difference)
        return difference <= CANARY_DIFFERENCE

    def revive(self, since: float) -> bool:
        """Restarts an engine that has died; whether it was restarted after `since`.

        Raises:
            ServiceError: 503, it cannot be restarted.
        """
        with self._lock:
            if self._restarted > since:
                return True
            if self.draws():
                return False
            self._restart()
            return True

    def restart(self) -> None:
        """
        Raises:
            ServiceError: 503, the bundle cannot be loaded.
        """
        with self._lock:
            self._restart()

    def _restart(self) -> None:
        log.error("restarting the engine")
        try:
            self.runtime = self._load()
        except (EngineError, OSError, RuntimeError) as error:
            message = "The engine failed and could not be restarted."
            raise ServiceError(message, status=503, code="engine_down") from error
        give_back()
        self._restarted = time.perf_counter()
        self._meters.restarts.inc()

    def _encode(self, prompts: list[str]) -> list[Conditioning]:
        allowed = next(size for size in self.batch_sizes if size >= len(prompts))
        if self._opened:
            self._meters.padding.inc(allowed - len(prompts))
        encoded = self.runtime.encode([*prompts, *[prompts[-1]] * (allowed - len(prompts))])
        rows = [_row(encoded, number) for number in range(len(prompts))]
        for prompt, row in zip(prompts, rows):
            self.embeddings.put(prompt, row, sum(array.nbytes for array in row.values()))
        return rows


def _row(conditioning: Conditioning, row: int) -> Conditioning:
    # Copied, as a view would keep the whole batch in memory for as long as the row is cached.
    return {name: array[row : row + 1].copy() for name, array in conditioning.items()}


def _stacked(rows: Sequence[Conditioning]) -> Conditioning:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
