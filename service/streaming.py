"""Pictures as server-sent events: the estimates of the steps, and each picture when it is ready."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

from engines.runtime.base import Floats

from .errors import ServiceError, as_service_error, to_response
from .image import Image
from .orders import Order, quality_of, written
from .usage import timing_of, usage_of

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"
Arrival = tuple[int, int | None, "Future[bytes]"]
"""Position of the image in its request, index of the estimate or None for the picture, the file."""


class Stream:
    """The events of one order; to be made before it is submitted."""

    def __init__(
        self, order: Order, partial_images: int, on_end: Callable[[ServiceError | None], None]
    ) -> None:
        """
        Args:
            partial_images: Estimates to be sent of each picture, as far as it has as many steps.
            on_end: Called when every picture has been sent, with None, or else with why they are not.
        """
        self._order, self._partial_images, self._on_end = order, partial_images, on_end
        self._loop = asyncio.get_running_loop()
        self._arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        if partial_images:
            for position, image in enumerate(order.images):
                image.on_estimate = self._listener(position, image)

    async def events(self) -> AsyncIterator[bytes]:
        """Ends when every picture has been sent, or with an error; gives the work up when closed."""
        for position, image in enumerate(self._order.images):
            self._follow(position, None, image)
        waiting, latest = set(range(len(self._order.images))), dict[int, int]()
        try:
            while waiting:
                position, index, file = await asyncio.wait_for(self._arrivals.get(), self._seconds_left())
                if index is None:
                    waiting.discard(position)
                elif position not in waiting or index < latest.get(position, 0) or file.exception():
                    continue  # too late to be of interest
                else:
                    latest[position] = index
                yield self._event(position, index, file.result())
            self._on_end(None)
        except Exception as error:
            known = self._order.late() if isinstance(error, TimeoutError) else as_service_error(error)
            self._on_end(known)
            yield b"event: error\ndata: " + bytes(to_response(known).body) + b"\n\n"
        finally:
            if waiting:
                self._order.cancel()

    def _listener(self, position: int, image: Image) -> Any:
        def listen(index: int, x0_CHW: Floats) -> None:
            estimates = image.steps - 1
            count = min(self._partial_images, estimates)
            chosen = [number * estimates // count for number in range(count)]
            if index in chosen:
                estimate = self._order.generator.preview(image, x0_CHW)
                self._follow(position, chosen.index(index), estimate)

        return listen

    def _follow(self, position: int, index: int | None, image: Image) -> None:
        def arrived(file: Future[bytes]) -> None:
            self._loop.call_soon_threadsafe(self._arrivals.put_nowait, (position, index, file))

        image.file.add_done_callback(arrived)

    def _seconds_left(self) -> float | None:
        deadline = min(image.deadline for image in self._order.images)
        return None if deadline == math.inf else max(0.0, deadline - time.perf_counter())

    def _event(self, position: int, index: int | None, content: bytes) -> bytes:
        image, kind = self._order.images[position], COMPLETED if index is None else PARTIAL
        fields: dict[str, Any] = {
            "type": kind,
            "b64_json": base64.b64encode(content).decode("ascii"),
            "created_at": int(time.time()),
            "size": written(image.size),
            "quality": quality_of(image.steps),
            "background": "opaque",
            "output_format": image.format,
            "index": position,
            "seed": image.seed,
            "num_inference_steps": image.steps,
        }
        if index is None:
            fields["usage"] = usage_of(self._order, 1).model_dump()
            fields["timing"] = timing_of(image)
        else:
            fields["partial_image_index"] = index
        return f"event: {kind}\ndata: {json.dumps(fields)}\n\n".encode()


def check_stream(partial_images: int, stream: bool, response_format: str | None) -> None:
    """
    Raises:
        ServiceError: fields that do not go together.
    """
    if partial_images and not stream:
        message = "Invalid 'partial_images': only with stream."
        raise ServiceError(message, param="partial_images", code="invalid_value")
    if stream and response_format == "url":
        message = "Invalid 'response_format': a stream carries b64_json."
        raise ServiceError(message, param="response_format", code="invalid_value")
