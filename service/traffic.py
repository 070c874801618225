"""Whether anybody waits for a picture: what nobody waits for is drawn while nobody does."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Traffic:
    """The images inside that somebody waits for, of all models of one process: they share its engine's device."""

    def __init__(self) -> None:
        self._inside = 0
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    @property
    def quiet(self) -> bool:
        return self._inside == 0

    def enter(self, images: int) -> None:
        with self._lock:
            self._inside += images

    def leave(self) -> None:
        """One image less; after the last one the listeners are told."""
        with self._lock:
            self._inside -= 1
            told = [] if self._inside else list(self._listeners)
        for listener in told:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners = [one for one in self._listeners if one != listener]
