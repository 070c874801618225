"""Which work is taken on: what can be done in time, without breaking a promise already given."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from engines.bundle import Size

from .elasticity import Ceiling
from .errors import ServiceError
from .fairness import FairShare
from .image import Image
from .latency import LatencyModel

LONGEST_RETRY = 60.0
QUANTILE = 0.95
"""Share of the images that are to be ready within what was predicted and the slack."""
WINDOW = 128
"""Images of late."""
SPEED_WEIGHT = 0.3
SPEED_SECONDS = 0.5
"""Shortest busy time from which the speed is taken."""
SPEEDS = (0.25, 8.0)
TRIAL_SECONDS = 1.0
"""An idle server that has drawn nothing for so long tries what it once could do, whatever it predicts by now."""
FRESH_SECONDS = 0.02
"""For so long a price is good, as a batch changes it by little and requests may come by the hundred."""


class _Rates(NamedTuple):
    encode: float
    denoise: float
    decode: float
    file: float

    def cost(self, image: Image, steps: int) -> float:
        """Seconds of the image's remaining phases, with `steps` to go."""
        encode = self.encode if image.conditioning is None else 0.0
        return encode + steps * self.denoise + self.decode + self.file


@dataclass(frozen=True)
class Bounds:
    """How much work may be inside.

    Attributes:
        images: Admitted and not yet finished.
        seconds: Predicted to be needed for all of it.
        patience: Images whose step count is open get fewer steps when the wait would make them
            take this many times as long as on an idle server.
    """

    images: int
    seconds: float
    patience: float


class Admission:
    """Predicts when images will be ready.

    An image costs the sum of its remaining batches' time per image; the phases overlap, so what all
    of it takes is that sum over `speed`, which is measured whenever there is a queue. What the sum
    leaves out is in `slack`, the seconds by which 95 % of the images of late were not later than
    predicted. Seconds and not a ratio: most of it is waiting for what runs already and for a core,
    which is not more for who has more to wait for.
    """

    def __init__(
        self, bounds: Bounds, latency: LatencyModel, fair: FairShare, batch_sizes: Sequence[int]
    ) -> None:
        self.bounds, self._latency, self._fair = bounds, latency, fair
        self._sizes = sorted(batch_sizes)
        self._ceiling = Ceiling()
        self.speed, self.slack = 1.0, 0.0
        self._late: deque[float] = deque(maxlen=WINDOW)
        self._busy_since: float | None = None
        self._work_done = 0.0
        self._promised = self._drew = 0.0
        self._priced_at, self._priced = -math.inf, dict[tuple[Size, int | None], _Rates]()

    def admit(
        self, inside: Collection[Image], new: Sequence[Image], choices: Sequence[int], now: float
    ) -> None:
        """Lets new images in, with as many of the steps in `choices` as there is time for, if there are any.

        Raises:
            ServiceError: 429, with what a client has to know to come back at the right time.
        """
        if not choices:
            return self.check(inside, new, now)
        self.choose_steps(inside, new, choices, now)
        try:
            self.check(inside, new, now)
        except ServiceError as refused:
            if refused.headers["x-should-retry"] == "true":
                self._ceiling.note(len(new), False, now)
            raise
        self._ceiling.note(len(new), True, now)

    def check(self, inside: Collection[Image], new: Sequence[Image], now: float) -> None:
        """Notes in each new image what it will take.

        Raises:
            ServiceError: 429, with what a client has to know to come back at the right time.
        """
        self._reprice(now)
        before = self._backlog(inside)
        if len(inside) + len(new) > self.bounds.images or before > self.bounds.seconds:
            self._refuse_full(inside, new, now)
        longest = max(before + self._backlog(new), self._alone(new, len(inside)))
        earliest = min(image.deadline for image in [*inside, *new])
        # On an idle server what can be done at all is taken, or a slack that is too large would stay so.
        slack = self.slack if inside else 0.0
        if now + longest + slack > earliest:
            self._check_each(inside, new, now + slack, now)
        elif len({image.client for image in [*inside, *new]}) == 1:
            # All of it is ready before the first deadline, whatever the order; no need to look closer.
            for image in new:
                image.predicted = longest

    def _check_each(self, inside: Collection[Image], new: Sequence[Image], start: float, now: float) -> None:
        asked, broken = set(map(id, new)), dict[int, float]()
        for image, ready in self._schedule([*inside, *new]):
            if id(image) in asked:
                image.predicted = ready
            if start + ready > image.deadline:
                broken[id(image)] = start + ready - image.deadline
        if not broken.keys() <= asked:
            # What would be late anyway is no reason to refuse others. Another client's new images change
            # whose turn it is, so without them the order is another.
            for image, ready in self._schedule(inside):
                if start + ready > image.deadline:
                    broken.pop(id(image), None)
        if broken and (inside or not self._worth_a_trial(new, now)):
            self._refuse_late(new, max(broken.values()), now)

    def _worth_a_trial(self, new: Sequence[Image], now: float) -> bool:
        """What is refused teaches nothing: figures of a time when the machine was slow would refuse everything
        for good if nothing was ever tried against them."""
        stale = now - self._drew >= TRIAL_SECONDS
        return stale and all(now + self._at_best(image, len(new)) <= image.deadline for image in new)

    def choose_steps(
        self, inside: Collection[Image], new: Sequence[Image], choices: Sequence[int], now: float
    ) -> None:
        """Gives new images the most steps with which they are ready in their deadline and within the
        patience, of those that there are at present; if none is, the fewest."""
        self._reprice(now)
        asked, time_left = set(map(id, new)), new[0].deadline - now
        _set_steps(new, max(choices))
        patience = self.bounds.patience * self._alone(new)
        for steps in self._ceiling.under(choices, now):
            _set_steps(new, steps)
            ready = max(ready for image, ready in self._schedule([*inside, *new]) if id(image) in asked)
            # Both sides of the second are predictions, and whatever they leave out they both do.
            if ready + self.slack <= time_left and ready <= patience:
                return

    def learn(self, image: Image, queued: bool, now: float) -> None:
        """Compares an image that is finished, or given up as its deadline passed, with what was predicted.

        Args:
            queued: Whether images were waiting all the time, so that the phases were never idle.
        """
        self._drew = now
        if 0 < image.predicted < math.inf:
            self._late.append(now - image.admitted - image.predicted)
            self.slack = sorted(self._late)[int(QUANTILE * len(self._late))]
        if not queued:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since, self._work_done = now, 0.0
        else:
            self._work_done += self._work(image)
            self._measure_speed(now - self._busy_since, now)

    def _schedule(self, images: Collection[Image]) -> Iterator[tuple[Image, float]]:
        """Each image in the order in which they go, and in how many seconds it is ready."""
        ahead = 0.0
        for image in self._fair.arrange([*images], _steps_left):
            size, left = image.size, _steps_left(image)
            ahead += self._price(size).cost(image, left)
            yield image, max(ahead / self.speed, self._price(size, len(images)).cost(image, left))

    def _reprice(self, now: float) -> None:
        if not 0 <= now - self._priced_at < FRESH_SECONDS:
            self._priced_at, self._priced = now, {}

    def _price(self, size: Size, together: int | None = None) -> _Rates:
        key = size, together
        if key not in self._priced:
            self._priced[key] = self._rates(size, together)
        return self._priced[key]

    def _rates(self, size: Size, together: int | None) -> _Rates:
        """What each phase takes for an image in the best batch, or for the whole batch that an image is in
        when so many are inside."""
        return _Rates(*(
            self._latency.per_image(stage, group) if together is None
            else self._of_batch(stage, group, together)
            for stage, group in _groups(size).items()
        ))  # fmt: skip

    def _of_batch(self, stage: str, group: Hashable, together: int) -> float:
        return self._latency.seconds(stage, group, self._batch(stage, group, together)) or 0.0

    def _batch(self, stage: str, group: Hashable, together: int) -> int:
        return self._latency.best_batch(stage, group, self._sizes, together)

    def _at_best(self, image: Image, together: int) -> float:
        """Seconds of the image on an idle server at the best of times."""
        stages = {
            stage: self._latency.at_best(stage, group, self._batch(stage, group, together))
            for stage, group in _groups(image.size).items()
        }
        return _Rates(**stages).cost(image, image.steps)

    def _backlog(self, images: Collection[Image]) -> float:
        """Seconds that all of it takes."""
        return sum(self._price(image.size).cost(image, _steps_left(image)) for image in images) / self.speed

    def _alone(self, new: Sequence[Image], company: int = 0) -> float:
        """Seconds that a request takes on an idle server, or if nobody went before it while `company`
        shares its batches."""
        together = len(new) + company
        costs = (self._price(image.size, together).cost(image, image.steps) for image in new)
        return max(self._backlog(new), *costs)

    def _work(self, image: Image) -> float:
        """Seconds of work that a finished image has been."""
        rates = self._price(image.size)
        return rates.encode + image.steps * rates.denoise + rates.decode + rates.file

    def _measure_speed(self, busy: float, now: float) -> None:
        if busy >= SPEED_SECONDS:
            measured = self._work_done / busy
            self.speed = _clip(self.speed + SPEED_WEIGHT * (measured - self.speed), SPEEDS)
            self._busy_since, self._work_done = now, 0.0

    def _refuse_full(self, inside: Collection[Image], new: Sequence[Image], now: float) -> NoReturn:
        """Room for new images comes after the room that those refused before have been told to wait
        for; else all of them would be back at once."""
        excess = max(0.0, self._backlog(inside) - self.bounds.seconds)
        wait = max(excess, self._promised - now) + self._backlog(new)
        self._promised = min(now + wait, now + LONGEST_RETRY)
        message = (
            f"The queue is full: {len(inside)} of at most {self.bounds.images} images are waiting or running,"
            f" {self._backlog(inside):.1f} s of at most {self.bounds.seconds:g} s of work."
        )
        raise refusal(message, "queue_full", wait)

    def _refuse_late(self, new: Sequence[Image], late: float, now: float) -> NoReturn:
        fastest = self._alone(new)
        if now + fastest > new[0].deadline:
            message = f"Even an idle server needs {1000 * fastest:.0f} ms for this."
            raise refusal(message, "deadline_unreachable", None)
        message = "This would not be ready in time, or would make what was promised to others late."
        raise refusal(message, "deadline_unreachable", late)


def refusal(message: str, code: str, wait: float | None) -> ServiceError:
    """429 that says when to come back; None, that there is no use in it."""
    headers = {"x-should-retry": "false"}
    if wait is not None:
        wait = min(max(wait, 0.001), LONGEST_RETRY)
        headers = {
            "Retry-After": f"{math.ceil(wait)}",
            "Retry-After-Ms": f"{math.ceil(1000 * wait)}",
            "x-should-retry": "true",
        }
    return ServiceError(message, status=429, code=code, headers=headers)


def _groups(size: Size) -> dict[str, Hashable]:
    """By phase, what shares a batch: prompts of all sizes do."""
    return {"encode": False, "denoise": size, "decode": size, "file": size}


def _set_steps(images: Sequence[Image], steps: int) -> None:
    for image in images:
        image.steps = steps


def _steps_left(image: Image) -> int:
    return image.steps - image.step


def _clip(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
