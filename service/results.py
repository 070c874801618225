"""Pictures that were asked for before: kept as files, or shared while they are being drawn."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from concurrent.futures import Future
from functools import partial

from .caches import ByteCache
from .image import Image
from .metrics import Metrics


class Results:
    """Equal images are drawn once.

    Right because a picture is a function of its key: model, prompt, seed, steps, size, file format.
    An image that is being drawn is shared by all requests for it; a finished one is kept as long as
    there is room. A capacity of 0 turns both off.
    """

    def __init__(self, capacity: int, metrics: Metrics) -> None:
        self._files: ByteCache[bytes] = ByteCache(capacity)
        self._drawing: dict[Hashable, Image] = {}
        self._metrics = metrics
        self._lock = threading.Lock()

    @property
    def enabled(self) -> bool:
        return self._files.capacity > 0

    def find(self, image: Image) -> Image | None:
        """The same picture, finished or being drawn, for one request more."""
        if not self.enabled:
            return None
        key = _key(image)
        with self._lock:
            found = self._drawing.get(key)
            if found is not None and not found.cancelled:
                found.wanted += 1
            else:
                found = _finished(image, self._files.get(key))
        (self._metrics.result_hits if found else self._metrics.result_misses).inc()
        return found

    def keep(self, image: Image) -> None:
        """Shares an admitted image, and keeps its file."""
        if not self.enabled:
            return
        key = _key(image)
        with self._lock:
            self._drawing[key] = image
        image.file.add_done_callback(partial(self._done, key))

    def _done(self, key: Hashable, file: Future[bytes]) -> None:
        # By its file, as a callback that knew the image would tie the two together (`Image.at_end`).
        with self._lock:
            found = self._drawing.get(key)
            if found is not None and found.file is file:
                del self._drawing[key]
        if file.exception() is None:
            self._files.put(key, file.result(), len(file.result()))


def _key(image: Image) -> Hashable:
    return image.prompt, image.seed, image.steps, image.size, image.format, image.compression


def _finished(image: Image, content: bytes | None) -> Image | None:
    if content is None:
        return None
    image.finish(content)
    return image
