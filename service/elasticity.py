"""How many steps images of open step count may have while there is more to do than can be done.

A prediction says whether an image fits beside those that are inside. What is refused says that others do not: as long
as open images are turned away, each step of those that are let in is taken from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

WINDOW_SECONDS = 0.5
REFUSED_SHARE = 0.05
"""Of the open images of a window; more is too many."""
CALM_SECONDS = 2.0


class Ceiling:
    """The most steps that an open image gets: a choice fewer after each window in which too many such images were
    refused, and a choice more after each `CALM_SECONDS` without a refusal."""

    def __init__(self) -> None:
        self._lowered = self._taken = self._refused = 0
        self._began = self._calm_since = -math.inf

    def under(self, choices: Sequence[int], now: float) -> list[int]:
        """The choices that are left, from the most steps down; one at least."""
        self._turn(now)
        self._lowered = min(self._lowered, len(choices) - 1)
        return sorted(choices, reverse=True)[self._lowered :]

    def note(self, images: int, taken: bool, now: float) -> None:
        """What became of open images. Those that not even an idle server could serve in time do not count."""
        self._turn(now)
        if taken:
            self._taken += images
        else:
            self._refused += images
            self._calm_since = now

    def _turn(self, now: float) -> None:
        """Judges the window if it is over, then the calm since the last refusal."""
        if now - self._began >= WINDOW_SECONDS:
            self._lowered += self._refused > REFUSED_SHARE * (self._taken + self._refused)
            self._began, self._taken, self._refused = now, 0, 0
        while self._lowered and now - self._calm_since >= CALM_SECONDS:
            self._lowered -= 1
            self._calm_since += CALM_SECONDS
