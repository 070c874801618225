"""One served model: a runtime behind four phases, and the door that bounds what is inside."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from engines.bundle import Size
from engines.runtime.base import Conditioning, Floats, Runtime
from engines.runtime.sampler import Pending, advance

from .errors import ServiceError
from .image import Image
from .metrics import Metrics
from .phases import Phase
from .pictures import Pixels, to_file
from .settings import Settings

FILE_WORKERS = min(4, os.cpu_count() or 1)
RECENT = 10.0
"""Seconds over which the throughput behind `Retry-After` is taken."""
LONGEST_RETRY = 60.0
JOIN_SECONDS = 5.0
STAGES = ("encode", "denoise", "decode", "file")


class Generator:
    """Runs one model: encode -> denoise -> decode -> file, each phase batching across requests.

    Attributes:
        name: What clients call the model.
        runtime: Executes its bundle.
        created: Unix time at which it was loaded.
    """

    def __init__(self, name: str, runtime: Runtime, settings: Settings, metrics: Metrics) -> None:
        self.name, self.runtime, self.created = name, runtime, int(time.time())
        self._limit, self._metrics = settings.queue_limit, metrics
        self._lock = threading.Lock()
        self._inflight, self._closing = 0, False
        self._busy_since = time.monotonic()
        self._finished: deque[float] = deque(maxlen=4096)
        self._warm_rate = 1.0
        self._promised = 0.0
        self._build_phases(settings.max_wait_ms / 1000)

    def _build_phases(self, max_wait: float) -> None:
        sizes, room = self.batch_sizes, 2 * max(self.batch_sizes)
        meters = {stage: self._metrics.stage(self.name, stage) for stage in STAGES}
        self._encode = Phase(
            "encode",
            self._encode_prompts,
            self._encoded,
            sizes=sizes,
            # The door bounds this inbox. A batch counts until all of it has moved on, though some
            # of its images may be finished by then, and `submit` must not wait for that.
            capacity=self._limit + max(sizes),
            meters=meters["encode"],
            max_wait=max_wait,
        )
        self._denoise = Phase(
            "denoise",
            self._denoise_step,
            self._denoised,
            sizes=sizes,
            capacity=room,
            meters=meters["denoise"],
            group=_size,
        )
        self._decode = Phase(
            "decode",
            self._decode_latents,
            self._decoded,
            sizes=sizes,
            capacity=room,
            meters=meters["decode"],
            group=_size,
        )
        self._file = Phase(
            "file",
            _encode_files,
            _filed,
            sizes=(1,),
            capacity=room,
            meters=meters["file"],
            workers=FILE_WORKERS,
        )
        self._phases: tuple[Phase[Image, Any], ...] = (self._encode, self._denoise, self._decode, self._file)

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted(self.runtime.bundle.spec.levels))

    @property
    def sizes(self) -> tuple[Size, ...]:
        return self.runtime.bundle.manifest.sizes

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(sorted(self.runtime.bundle.manifest.batch_sizes))

    @property
    def inflight(self) -> int:
        return self._inflight

    def warm_up(self) -> None:
        """Generates at every declared size and batch size, then opens the phases."""
        for size, batch in itertools.product(self.sizes, self.batch_sizes):
            started = time.perf_counter()
            images = [Image(f"warm-up {index}", index, self.steps[0], size) for index in range(batch)]
            self._encode.warm(images)
            for _ in range(self.steps[0]):
                self._denoise.warm(images)
            self._decode.warm(images)
            for image in images:
                self._file.warm([image])
            # Every phase ran twice.
            self._warm_rate = 2 * batch / (time.perf_counter() - started)
        for phase in self._phases:
            phase.start()

    def submit(self, images: Sequence[Image]) -> None:
        """Admits all of the images, or none.

        Raises:
            ServiceError: 429 with `Retry-After`, there is no room; 503, the server is shutting down.
        """
        self._admit(len(images))
        for image in images:
            image.file.add_done_callback(partial(self._leave, image))
        self._encode.put(images)

    def close_door(self) -> None:
        with self._lock:
            self._closing = True

    def close(self) -> None:
        """Fails what is still inside and ends the workers."""
        self.close_door()
        for phase in self._phases:
            phase.close(JOIN_SECONDS)

    def _admit(self, count: int) -> None:
        with self._lock:
            if self._closing:
                raise ServiceError("The server is shutting down.", status=503, code="shutting_down")
            if self._inflight + count > self._limit:
                raise self._full(count)
            if self._inflight == 0:
                self._busy_since = time.monotonic()
            self._inflight += count
            self._metrics.inflight.labels(self.name).set(self._inflight)

    def _leave(self, image: Image, file: Future[bytes]) -> None:
        with self._lock:
            self._inflight -= 1
            self._metrics.inflight.labels(self.name).set(self._inflight)
            self._finished.append(time.monotonic())
        if file.exception() is None:
            self._metrics.images.labels(self.name, image.steps).inc()
            self._metrics.queue_seconds.observe(image.seconds["queue"])

    def _full(self, count: int) -> ServiceError:
        """Room for `count` images comes after the room that those refused before have been told to wait
        for; else all of them would be back at once."""
        now = time.monotonic()
        self._promised = min(max(self._promised, now) + count / self._rate(), now + LONGEST_RETRY)
        seconds = self._promised - now
        headers = {"Retry-After": f"{math.ceil(seconds)}", "Retry-After-Ms": f"{math.ceil(1000 * seconds)}"}
        return ServiceError(
            f"The queue is full: {self._inflight} of at most {self._limit} images are waiting or running.",
            status=429,
            code="queue_full",
            headers=headers,
        )

    def _rate(self) -> float:
        """Images per second of late, or of the warm-up when none has finished yet."""
        now = time.monotonic()
        since = max(now - RECENT, self._busy_since)
        recent = sum(moment > since for moment in self._finished)
        return recent / (now - since) if recent else self._warm_rate

    def _encode_prompts(self, images: Sequence[Image]) -> list[Conditioning]:
        # The images of one request share a prompt, which is encoded once.
        prompts = list(dict.fromkeys(image.prompt for image in images))
        allowed = next(size for size in self.batch_sizes if size >= len(prompts))
        encoded = self.runtime.encode([*prompts, *[prompts[-1]] * (allowed - len(prompts))])
        rows = {prompt: row for row, prompt in enumerate(prompts)}
        return [_row(encoded, rows[image.prompt]) for image in images]

    def _encoded(self, image: Image, conditioning: Conditioning) -> Phase[Image, Any]:
        image.conditioning = conditioning
        return self._denoise

    def _denoise_step(self, images: Sequence[Image]) -> list[tuple[Floats, Floats]]:
        """Each image's own next step: inputs and clean estimates."""
        spec = self.runtime.bundle.spec
        pending = [Pending(one.seed, one.steps, one.step, one.x_CHW, one.x0_CHW) for one in images]
        conditioning = _stacked([image.conditioning for image in images if image.conditioning is not None])
        shape = spec.latent_shape(images[0].size)  # a batch has one size
        return list(zip(*advance(self.runtime, spec, pending, shape, conditioning)))

    def _denoised(self, image: Image, state: tuple[Floats, Floats]) -> Phase[Image, Any]:
        image.x_CHW, image.x0_CHW = state
        image.step += 1
        return self._denoise if image.step < image.steps else self._decode

    def _decode_latents(self, images: Sequence[Image]) -> list[Pixels]:
        x0_BCHW = np.stack([image.x0_CHW for image in images if image.x0_CHW is not None])
        return list(self.runtime.decode(x0_BCHW))

    def _decoded(self, image: Image, pixels_HWC: Pixels) -> Phase[Image, Any]:
        image.pixels_HWC = pixels_HWC
        image.conditioning = image.x_CHW = image.x0_CHW = None
        return self._file


def _row(conditioning: Conditioning, row: int) -> Conditioning:
    return {name: array[row : row + 1] for name, array in conditioning.items()}


def _stacked(rows: Sequence[Conditioning]) -> Conditioning:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _size(image: Image) -> Hashable:
    return image.size


def _encode_files(images: Sequence[Image]) -> list[bytes]:
    return [
        to_file(image.pixels_HWC, image.format, image.compression)
        for image in images
        if image.pixels_HWC is not None
    ]


def _filed(image: Image, content: bytes) -> None:
    image.finish(content)
