"""How long batches take, learned while they run: what every promise of the server rests on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

WEIGHT = 0.1
"""Of a new measurement; about the last twenty count."""
OUTLIER = 4.0
"""Times the mean as which anything longer counts: one stall says little about the next batch."""
SLACK = 1.25
"""Times what an image takes in the best batch, that it may take in one that is over sooner."""


class LatencyModel:
    """Seconds of one batch by stage, group (the picture's size) and batch size.

    A bundle runs at a handful of batch sizes, all of which the warm-up measures, so there is one
    running mean for each instead of a line through all: a GPU's time is flat, then a staircase.
    """

    def __init__(self) -> None:
        self._means: dict[tuple[str, Hashable], dict[int, float]] = {}

    def observe(self, stage: str, group: Hashable, batch: int, seconds: float) -> None:
        means = self._means.setdefault((stage, group), {})
        known = means.get(batch, seconds)
        # A new dictionary, as other threads may be reading the old one.
        self._means[stage, group] = {**means, batch: known + WEIGHT * (min(seconds, OUTLIER * known) - known)}

    def seconds(self, stage: str, group: Hashable, batch: int) -> float | None:
        """Of a batch of `batch` images, or of the next larger size that was seen; None for none."""
        means = self._means.get((stage, group), {})
        fitting = min((size for size in means if size >= batch), default=max(means, default=0))
        return means.get(fitting)

    def per_image(self, stage: str, group: Hashable) -> float:
        """Of one image at the batch size that is best for throughput; 0 if never seen."""
        means = self._means.get((stage, group), {})
        return min((seconds / size for size, seconds in means.items()), default=0.0)

    def best_batch(self, stage: str, group: Hashable, sizes: Sequence[int], waiting: int) -> int:
        """The allowed size that serves `waiting` items fastest.

        Either the largest size that they fill, or the next one with some places padded. Which is
        faster depends on the backend: a GPU runs 8 images in hardly more time than 5, a CPU core
        does not.
        """
        full = max((size for size in sizes if size <= waiting), default=None)
        padded = min((size for size in sizes if size > waiting), default=None)
        if full is None or padded is None:
            return full or min(sizes)
        means = self._means.get((stage, group), {})
        if full not in means or padded not in means:
            return full
        return padded if means[padded] < means[full] * waiting / full else full

    def brief_batch(self, stage: str, group: Hashable, sizes: Sequence[int]) -> int:
        """The smallest allowed size at which an image takes hardly longer than at the best one: whoever comes
        meanwhile waits least for it. The largest where none has been seen."""
        means = self._means.get((stage, group), {})
        each = {size: means[size] / size for size in sizes if size in means}
        limit = SLACK * min(each.values(), default=0.0)
        return min((size for size, seconds in each.items() if seconds <= limit), default=max(sizes))
