"""One served model: an engine behind four phases, and the door that bounds what is inside."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from engines.bundle import Size
from engines.runtime.base import Conditioning, Floats, Runtime

from .admission import Admission, Bounds
from .engine import Engine
from .errors import ServiceError
from .fairness import FairShare
from .image import ONLINE, CancelledError, Image
from .latency import LatencyModel
from .metrics import Metrics
from .phases import Phase
from .pictures import Pixels, to_file
from .provenance import Provenance
from .results import Results
from .settings import Settings
from .traffic import Traffic
from .watchdog import Watchdog

log = logging.getLogger(__name__)

FILE_WORKERS = min(4, os.cpu_count() or 1)
SMALL_BYTES = 1 << 15
"""Of pixels: up to here the decoder's thread writes the file, as waking another one takes as long."""
BRIEF_SECONDS = 0.005
"""Of a batch: up to here waking another thread for a lone image takes longer than it is worth."""
JOIN_SECONDS = 5.0
STAGES = ("encode", "denoise", "decode", "file")


class Generator:
    """Runs one model: encode -> denoise -> decode -> file, each phase batching across requests.

    Attributes:
        name: What clients call the model.
        engine: Does the work of the first three phases.
        results: Files of late, if they are kept, and images that several requests wait for.
        created: Unix time at which it was loaded.
    """

    def __init__(
        self,
        name: str,
        runtime: Runtime | Callable[[], Runtime],
        settings: Settings,
        metrics: Metrics,
        traffic: Traffic | None = None,
    ) -> None:
        """
        Args:
            runtime: Executes the bundle; or what loads it, again whenever the engine has died.
            traffic: Of all generators on the device; by default this one has it alone.
        """
        load = runtime if callable(runtime) else lambda: runtime
        self.name, self.created = name, int(time.time())
        self.engine = Engine(load, metrics.engine(name))
        self.results = Results(settings.result_cache_mb << 20, metrics)
        self._provenance = settings.provenance
        self._embedding_bytes = settings.embedding_cache_mb << 20
        self._metrics, self._meters = metrics, metrics.model(name)
        self._lock = threading.Lock()
        self._inside: dict[int, Image] = {}
        self._traffic = traffic or Traffic()
        self._closing = False
        self._last_picture = 0.0
        self._latency, self._fair = LatencyModel(), FairShare()
        bounds = Bounds(settings.queue_limit, settings.queue_seconds, settings.auto_patience)
        self.admission = Admission(bounds, self._latency, self._fair, self.batch_sizes)
        self._phases = self._build_phases(settings.queue_limit, settings.max_wait_ms / 1000)
        self.watchdog = Watchdog(
            self.engine,
            self._phases,
            lambda: self._last_picture,
            settings.stall_seconds,
            settings.canary_seconds,
        )

    def _build_phases(self, limit: int, max_wait: float) -> tuple[Phase[Image, Any], ...]:
        sizes = self.batch_sizes
        shared = partial(
            Phase[Image, Any],
            latency=self._latency,
            arrange=self._arrange,
            revive=self.engine.revive,
            quiet=lambda: self._traffic.quiet,
            sizes=sizes,
            capacity=2 * max(sizes),
            group=_size,
        )
        meters = {stage: self._metrics.stage(self.name, stage) for stage in STAGES}
        self._encode = shared(
            "encode",
            self.engine.encode,
            self._encoded,
            meters=meters["encode"],
            # The engine pads what is left when equal and cached prompts have been taken out.
            sizes=range(1, max(sizes) + 1),
            # The door bounds this inbox. A batch counts until all of it has moved on, though some
            # of its images may be finished by then, and `submit` must not wait for that.
            capacity=limit + max(sizes),
            group=self._is_encoded,
            max_wait=max_wait,
            in_company=lambda waiting: len(self._inside) > waiting,
        )
        self._denoise = shared(
            "denoise",
            self.engine.denoise,
            self._denoised,
            meters=meters["denoise"],
            brief=partial(self._is_lone, "denoise"),
        )
        self._decode = shared(
            "decode",
            self.engine.decode,
            self._decoded,
            meters=meters["decode"],
            brief=partial(self._is_lone, "decode"),
        )
        self._file = shared(
            "file",
            self._encode_files,
            self._filed,
            meters=meters["file"],
            sizes=(1,),
            brief=_is_small,
            workers=FILE_WORKERS,
        )
        return self._encode, self._denoise, self._decode, self._file

    @property
    def runtime(self) -> Runtime:
        return self.engine.runtime

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted(self.runtime.bundle.spec.levels))

    @property
    def sizes(self) -> tuple[Size, ...]:
        return self.runtime.bundle.manifest.sizes

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self.engine.batch_sizes

    @property
    def inflight(self) -> int:
        return len(self._inside)

    @property
    def idle(self) -> bool:
        """No image is inside that somebody waits for."""
        return not self._inside

    def warm_up(self) -> None:
        """Generates at every declared size and batch size, then opens the phases.

        Raises:
            ServiceError: the canary picture does not come out the same twice.
        """
        for size, batch in itertools.product(self.sizes, self.batch_sizes):
            images = [Image(f"warm-up {index}", index, self.steps[0], size) for index in range(batch)]
            self._encode.warm(images)
            for _ in range(self.steps[0]):
                self._denoise.warm(images)
            self._decode.warm(images)
            for image in images:
                self._file.warm([image])
        if not (self.engine.draws() and self.engine.draws()):
            raise ServiceError("its canary picture failed", status=500)
        self.engine.open(self._embedding_bytes)
        for phase in self._phases:
            phase.start()
        self._traffic.listen(self._wake)
        self.watchdog.start()

    def submit(self, images: Sequence[Image], choices: Sequence[int] = ()) -> None:
        """Admits all of the images, or none.

        Args:
            choices: Step counts that will do: the highest at which the images are ready about as
                soon as on an idle server, else the lowest; by default that of the images.

        Raises:
            ServiceError: 429 with `Retry-After`, it cannot be done in time; 503, the server is
                shutting down.
        """
        with self._lock:
            self._check_open()
            now, inside = time.perf_counter(), list(self._inside.values())
            self.admission.admit(inside, images, choices, now)
            if choices and images[0].steps < max(choices):
                self._meters.reduced.inc(len(images))
            self._inside |= {id(image): image for image in images}
            self._meters.inflight.inc(len(images))
            self._fair.enter(images)
        self._traffic.enter(len(images))
        for image in images:
            image.at_end(self._leave)
        self._encode.put(images)

    def fill_in(self, images: Sequence[Image]) -> None:
        """Takes images of the lane `OFFLINE`, past the door, to be drawn in places that nothing else needs.

        Whoever calls bounds how many are inside at once. They fail when the model leaves memory.

        Raises:
            ServiceError: 503, the model is leaving.
        """
        with self._lock:
            self._check_open()
        for image in images:
            image.at_end(self._filled_in)
        self._encode.put(images)

    def cancel(self, images: Sequence[Image]) -> None:
        """One request less wants the images; those that nobody wants leave at the next boundary."""
        for image in images:
            image.wanted -= 1
        for phase in self._phases:
            phase.drop_cancelled()

    def preview(self, image: Image, x0_CHW: Floats) -> Image:
        """A clean estimate on its way to a file of its own, past the door, as `image` has been let in."""
        estimate = Image(
            image.prompt, image.seed, image.steps, image.size, image.format, image.compression, image.client
        )
        estimate.step, estimate.x0_CHW, estimate.deadline = image.steps, x0_CHW, image.deadline
        estimate.preliminary = True
        self._decode.put([estimate])
        return estimate

    def close_door(self) -> None:
        with self._lock:
            self._closing = True

    def close(self) -> None:
        """Fails what is still inside and ends the workers."""
        self.close_door()
        self.watchdog.stop()
        self._traffic.forget(self._wake)
        for phase in self._phases:
            phase.close(JOIN_SECONDS)

    def _check_open(self) -> None:
        if self._closing:
            raise ServiceError("The server is shutting down.", status=503, code="shutting_down")

    def _wake(self) -> None:
        for phase in self._phases:
            phase.wake()

    def _leave(self, image: Image, outcome: bytes | Exception) -> None:
        now = time.perf_counter()
        error = outcome if isinstance(outcome, Exception) else None
        with self._lock:
            if self._inside.pop(id(image), None) is not None:
                self._meters.inflight.dec()
            self._fair.leave(image)
            if error is None or now >= image.deadline:
                queued = error is None and len(self._inside) > max(self.batch_sizes)
                self.admission.learn(image, queued, now)
        self._traffic.leave()
        if error is None:
            self._drawn(image, now)
            if 0 < image.predicted < math.inf:
                self._meters.prediction.observe((now - image.admitted) / image.predicted)
            self._metrics.queue_seconds.observe(image.seconds["queue"])
        elif isinstance(error, CancelledError):
            self._meters.cancelled.inc()

    def _filled_in(self, image: Image, outcome: bytes | Exception) -> None:
        if isinstance(outcome, bytes):
            self._drawn(image, time.perf_counter())

    def _drawn(self, image: Image, now: float) -> None:
        self._last_picture = now
        self._meters.images.labels(self.name, image.steps).inc()

    def _arrange(self, images: Sequence[Image]) -> list[Image]:
        return self._fair.arrange(images, lambda image: image.steps - image.step)

    def _is_lone(self, stage: str, image: Image) -> bool:
        """Whether the encoder's thread may go on with the image: nobody else is here whom that would keep waiting,
        and whoever comes waits for a moment only."""
        if len(self._inside) != 1 or id(image) not in self._inside:
            return False
        seconds = self._latency.seconds(stage, image.size, 1)
        brief = seconds is not None and seconds <= BRIEF_SECONDS
        return brief and self._denoise.idle and self._decode.idle

    def _is_encoded(self, image: Image) -> Hashable:
        return image.prompt in self.engine.embeddings

    def _encoded(self, image: Image, conditioning: Conditioning) -> Phase[Image, Any]:
        image.conditioning = conditioning
        return self._denoise

    def _denoised(self, image: Image, state: tuple[Floats, Floats]) -> Phase[Image, Any]:
        image.x_CHW, image.x0_CHW = state
        image.step += 1
        if image.lane == ONLINE:
            self._fair.charge(image)
        if image.step == image.steps:
            return self._decode
        if image.on_estimate is not None:
            image.on_estimate(image.step - 1, image.x0_CHW)
        return self._denoise

    def _decoded(self, image: Image, pixels_HWC: Pixels) -> Phase[Image, Any]:
        image.pixels_HWC = pixels_HWC
        image.conditioning = image.x_CHW = image.x0_CHW = None
        return self._file

    def _encode_files(self, images: Sequence[Image]) -> list[bytes]:
        return [
            to_file(image.pixels_HWC, image.format, image.compression, self._provenance_of(image))
            for image in images
            if image.pixels_HWC is not None
        ]

    def _provenance_of(self, image: Image) -> Provenance | None:
        if image.preliminary or not self._provenance:
            return None
        return Provenance(
            prompt=image.prompt,
            seed=image.seed,
            steps=image.steps,
            size=image.size,
            model=self.name,
            bundle=self.runtime.bundle.digest,
            compression=image.compression,
        )

    def _filed(self, image: Image, content: bytes) -> None:
        image.finish(content)


def _size(image: Image) -> Hashable:
    return image.size


def _is_small(image: Image) -> bool:
    return image.pixels_HWC is not None and image.pixels_HWC.nbytes <= SMALL_BYTES
