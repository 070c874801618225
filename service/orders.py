"""What one request asks of one model, from its fields to its files."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from engines.bundle import Size
from engines.runtime.sampler import MAX_SEED

from .errors import ClientGoneError, ServiceError, invalid
from .generator import Generator
from .image import ONLINE, Image
from .pictures import Format
from .schemas import ImagesRequest, Quality
from .settings import Settings

STEPS = {"low": 1, "medium": 2, "standard": 2, "high": 4, "hd": 4, "auto": 4}
RANDOM_SEEDS = 2**31
"""Drawn seeds stay small enough for a JavaScript client to repeat exactly. They are no secret: the system's own
random numbers cost a system call each, and the interpreter's lock while others want it."""


@dataclass
class Order:
    """
    Attributes:
        images: What is to be drawn; after `submit` some may be shared with other requests.
        choices: Step counts that will do, if that is left open.
    """

    body: ImagesRequest
    generator: Generator
    images: list[Image]
    choices: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        return self.images[0].steps

    @property
    def etag(self) -> str:
        """Of the pictures, which are a function of the bundle and what is asked for."""
        asked = [
            (image.prompt, image.seed, image.steps, image.size, image.format, image.compression)
            for image in self.images
        ]
        content = repr((self.generator.runtime.bundle.digest, asked))
        return f'"{hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]}"'

    def submit(self) -> None:
        """
        Raises:
            ServiceError: 429 or 503, see `Generator.submit`.
        """
        results, open_ended = self.generator.results, bool(self.choices)
        found = [None if open_ended else results.find(image) for image in self.images]
        new = [image for image, known in zip(self.images, found) if known is None]
        try:
            if new:
                self.generator.submit(new, self.choices)
        except ServiceError:
            self.generator.cancel([known for known in found if known is not None])
            raise
        for image in new:
            results.keep(image)
        self.images = [known or image for image, known in zip(self.images, found)]

    async def files(self, gone: Awaitable[object]) -> list[bytes]:
        """The files of all images.

        Args:
            gone: Completes when the client leaves.

        Raises:
            ServiceError: 504, the deadline passed first; or why an image could not be drawn.
            ClientGoneError: the client left first.
        """
        files = asyncio.gather(
            *(asyncio.wrap_future(image.file) for image in self.images), return_exceptions=True
        )
        leaving, deadline = asyncio.ensure_future(gone), min(image.deadline for image in self.images)
        timeout = None if deadline == math.inf else max(0.0, deadline - time.perf_counter())
        try:
            either: set[asyncio.Future[Any]] = {files, leaving}
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not files.done():
                self.cancel()
        if not files.done():
            raise ClientGoneError if leaving.done() else self.late()
        leaving.cancel()
        outcomes = files.result()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, bytes)]

    async def filled_in(self) -> list[bytes]:
        """The files of all images, drawn in places that nothing else needs.

        Raises:
            ServiceError: 503, the model is leaving memory; or why an image could not be drawn.
        """
        self.generator.fill_in(self.images)
        try:
            return await asyncio.gather(*(asyncio.wrap_future(image.file) for image in self.images))
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        self.generator.cancel(self.images)

    def late(self) -> ServiceError:
        # The official client would otherwise send the request again, which is late already.
        return ServiceError(
            "The pictures were not ready in time.",
            status=504,
            param="deadline_ms",
            code="deadline_exceeded",
            headers={"x-should-retry": "false"},
        )


def read_order(
    body: ImagesRequest,
    generator: Generator,
    settings: Settings,
    *,
    client: str = "",
    deadline: float = math.inf,
    lane: int = ONLINE,
) -> Order:
    """
    Raises:
        ServiceError: the model or the server cannot do it; says what they can.
    """
    count, format = body.n or 1, body.output_format or "png"
    length, limit = len(body.prompt), settings.max_prompt_chars
    if length > limit:
        raise invalid("prompt", f"The prompt has {length} characters; at most {limit} are accepted.")
    if count > settings.queue_limit:
        raise invalid("n", f"This server takes at most {settings.queue_limit} images at once.")
    size, steps, seed = _size(body, generator), _steps(body, generator), _seed(body, count)
    compression = _compression(body, format)
    images = [
        Image(
            body.prompt,
            seed + index,
            steps,
            size,
            format=format,
            compression=compression,
            client=client,
            deadline=deadline,
            lane=lane,
        )
        for index in range(count)
    ]
    open_ended = body.quality == "auto" and body.num_inference_steps is None
    return Order(body, generator, images, generator.steps if open_ended else ())


def lot_of(body: ImagesRequest, key: str | None = None) -> str:
    """What decides whether a request is the canary's: the same for one that is sent again.

    Args:
        key: Its Idempotency-Key.
    """
    if key:
        return f"key {key}"
    if body.user:
        return f"user {body.user}"
    if body.seed is not None:
        return f"seed {body.seed} {body.prompt}"
    return f"{random.getrandbits(64):016x}"


def quality_of(steps: int) -> Quality:
    return "high" if steps >= STEPS["high"] else "medium" if steps >= STEPS["medium"] else "low"


def written(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _size(body: ImagesRequest, generator: Generator) -> Size:
    if body.size in (None, "auto"):
        return generator.runtime.bundle.spec.default_size
    sizes = {written(size): size for size in generator.sizes}
    if body.size not in sizes:
        raise invalid("size", f"Invalid 'size': '{generator.name}' makes {', '.join(sizes)}, or auto.")
    return sizes[body.size]


def _steps(body: ImagesRequest, generator: Generator) -> int:
    """The step count asked for, or the model's nearest to the quality asked for from below."""
    supported = generator.steps
    if body.num_inference_steps is None:
        wanted = STEPS[body.quality or "auto"]
        return max((steps for steps in supported if steps <= wanted), default=supported[0])
    if body.num_inference_steps not in supported:
        message = f"Invalid 'num_inference_steps': '{generator.name}' takes {', '.join(map(str, supported))}."
        raise invalid("num_inference_steps", message)
    return body.num_inference_steps


def _seed(body: ImagesRequest, count: int) -> int:
    if body.seed is None:
        return random.randrange(RANDOM_SEEDS)
    if body.seed + count - 1 > MAX_SEED:
        message = f"Invalid 'seed': the last of {count} images would have one above {MAX_SEED}."
        raise invalid("seed", message)
    return body.seed


def _compression(body: ImagesRequest, format: Format) -> int:
    compression = 100 if body.output_compression is None else body.output_compression
    if format == "png" and compression < 100:
        message = "Invalid 'output_compression': png is lossless; use jpeg or webp."
        raise invalid("output_compression", message)
    return compression
