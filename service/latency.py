"""How long batches take, learned while they run: what every promise of the server rests on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

WEIGHT = 0.1
"""Of a new measurement; about the last twenty count."""
SHAPE_WEIGHT = 0.005
"""Of a new measurement, in what sizes are to each other."""
OUTLIER = 4.0
"""Times the mean as which anything longer counts: one stall says little about the next batch."""
SLACK = 1.25
"""Times what an image takes in the best batch, that it may take in one that is over sooner."""


@dataclass
class _Stage:
    """Seconds of a batch of size b are `pace * shape[b]`."""

    shape: dict[int, float] = field(default_factory=dict)
    pace: float = 1.0
    lowest: float = 1.0
    """Pace so far; the warm-up's is 1."""


NOTHING = _Stage()


class LatencyModel:
    """Seconds of one batch by stage, group (the picture's size) and batch size.

    A bundle runs at a handful of batch sizes, all of which the warm-up measures, so each has a figure
    of its own instead of a line through all: a GPU's time is flat, then a staircase. What slows one
    size down slows all, so they share a pace, or a size that was last used under load would look slow
    for as long as it is not used again.
    """

    def __init__(self) -> None:
        self._stages: dict[tuple[str, Hashable], _Stage] = {}

    def observe(self, stage: str, group: Hashable, batch: int, seconds: float) -> None:
        known = self._stages.get((stage, group), NOTHING)
        usual = known.shape.get(batch, seconds / known.pace)
        ratio = min(seconds / usual, OUTLIER * known.pace) if usual else known.pace
        pace = known.pace + WEIGHT * (ratio - known.pace)
        shape = usual * (1 + SHAPE_WEIGHT * (ratio / pace - 1)) if pace else usual
        # A new one, as other threads may be reading the old one.
        self._stages[stage, group] = _Stage({**known.shape, batch: shape}, pace, min(pace, known.lowest))

    def seconds(self, stage: str, group: Hashable, batch: int) -> float | None:
        """Of a batch of `batch` images, or of the next larger size that was seen; None for none."""
        known = self._stages.get((stage, group), NOTHING)
        sizes = known.shape
        fitting = min((size for size in sizes if size >= batch), default=max(sizes, default=0))
        return known.pace * sizes[fitting] if sizes else None

    def at_best(self, stage: str, group: Hashable, batch: int) -> float:
        """What `seconds` said at the best of times; 0 if never seen."""
        known = self._stages.get((stage, group), NOTHING)
        return (self.seconds(stage, group, batch) or 0.0) * known.lowest / known.pace

    def per_image(self, stage: str, group: Hashable) -> float:
        """Of one image at the batch size that is best for throughput; 0 if never seen."""
        known = self._stages.get((stage, group), NOTHING)
        return known.pace * min((seconds / size for size, seconds in known.shape.items()), default=0.0)

    def best_batch(self, stage: str, group: Hashable, sizes: Sequence[int], waiting: int) -> int:
        """The allowed size that serves `waiting` items fastest; of equals the smaller.

        A GPU runs 8 images in hardly more time than 5, so places are padded; where a batch takes as
        long as its items one after the other, as in a decoder on a CPU, the first is not made to wait
        for the others.
        """
        fitting = [size for size in sizes if size <= waiting]
        larger = [] if waiting in fitting else [size for size in sizes if size > waiting][:1]
        shape, candidates = self._stages.get((stage, group), NOTHING).shape, [*fitting, *larger]
        if any(size not in shape for size in candidates):
            return max(fitting, default=min(sizes))
        return min(candidates, key=lambda size: (shape[size] / min(size, waiting), size))

    def brief_batch(self, stage: str, group: Hashable, sizes: Sequence[int]) -> int:
        """The smallest allowed size at which an image takes hardly longer than at the best one: whoever comes
        meanwhile waits least for it. The largest where none has been seen."""
        shape = self._stages.get((stage, group), NOTHING).shape
        each = {size: shape[size] / size for size in sizes if size in shape}
        limit = SLACK * min(each.values(), default=0.0)
        return min((size for size, seconds in each.items() if seconds <= limit), default=max(sizes))
