"""One phase of the pipeline: a bounded inbox, a batch rule, a worker, a histogram."""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from .errors import ServiceError
from .metrics import StageMeters

log = logging.getLogger(__name__)


class Item(Protocol):
    """What passes through phases."""

    @property
    def order(self) -> tuple[float, ...]:
        """Smaller goes first; equals go in order of arrival."""

    def spend(self, stage: str, seconds: float) -> None:
        """Told after each batch that the item was in."""

    def fail(self, error: Exception) -> None:
        """Told instead of further phases when the item cannot be finished."""


T = TypeVar("T", bound=Item)
R = TypeVar("R")
U = TypeVar("U")


class Phase(Generic[T, R]):
    """Runs batches of the items that wait in its inbox and sends each one on to its next phase.

    `work` turns items into as many results and changes nothing; `route` stores one result in its
    item and names the phase that the item goes to next, or None after the last. An item routed to
    the phase it is in comes back for another round: that is all there is to step-level batching.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[T]], Sequence[R]],
        route: Callable[[T, R], Phase[T, Any] | None],
        *,
        sizes: Sequence[int],
        capacity: int,
        meters: StageMeters,
        group: Callable[[T], Hashable] = lambda item: None,
        max_wait: float = 0.0,
        workers: int = 1,
    ) -> None:
        """
        Args:
            sizes: Batch sizes that `work` accepts.
            capacity: Items inside, waiting or in a batch, beyond which `put` blocks.
            group: Only items with equal groups share a batch.
            max_wait: Seconds for which the first item waits for a full batch.
        """
        self.name, self._work, self._route, self._group = name, work, route, group
        self._sizes, self._capacity, self._max_wait = sorted(sizes), capacity, max_wait
        self._meters = meters
        self._seconds: dict[tuple[Hashable, int], float] = {}
        self._waiting: list[T] = []
        self._running = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{index}", daemon=True)
            for index in range(workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def put(self, items: Sequence[T]) -> None:
        """Adds items, waiting for room as long as it takes; a closed phase fails them."""
        while items:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._room() > 0)
                if self._closed:
                    break
                room = self._room()
                self._insert(items[:room])
            items = items[room:]
        _fail(items, _closing())

    def warm(self, items: Sequence[T]) -> None:
        """Runs one batch on the caller's thread, twice, and remembers what the second run took."""
        self._work(items)
        started = time.perf_counter()
        results = self._work(items)
        self._seconds[self._group(items[0]), len(items)] = time.perf_counter() - started
        for item, result in zip(items, results):
            self._route(item, result)

    def close(self, timeout: float) -> None:
        """Ends the workers after the batch they are in; whatever still waits fails."""
        with self._changed:
            self._closed = True
            abandoned, self._waiting = self._waiting, []
            self._meters.depth.set(0)
            self._changed.notify_all()
        _fail(abandoned, _closing())
        for thread in self._threads:
            thread.join(timeout)

    def _room(self) -> int:
        return self._capacity - len(self._waiting) - self._running

    def _insert(self, items: Sequence[T]) -> None:
        for item in items:
            bisect.insort(self._waiting, item, key=lambda other: other.order)
        self._meters.depth.set(len(self._waiting))
        self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._take():
            self._send_on(batch, self._process(batch))

    def _take(self) -> list[T]:
        """The next batch in order; nothing once the phase is closed."""
        with self._changed:
            while not self._closed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._max_wait:
                    self._changed.wait_for(self._worth_starting, self._max_wait)
                if self._waiting:
                    return self._choose()
            return []

    def _choose(self) -> list[T]:
        """Takes the first item out, with those next in order that may share its batch."""
        group = self._group(self._waiting[0])
        alike = [item for item in self._waiting if self._group(item) == group]
        batch = alike[: self._batch_size(group, len(alike))]
        chosen = set(map(id, batch))
        self._waiting = [item for item in self._waiting if id(item) not in chosen]
        self._running += len(batch)
        self._meters.depth.set(len(self._waiting))
        return batch

    def _worth_starting(self) -> bool:
        return self._closed or len(self._waiting) >= self._sizes[-1]

    def _batch_size(self, group: Hashable, waiting: int) -> int:
        """The allowed size that serves `waiting` items fastest.

        Either the largest size that they fill, or the next one with some places padded. Which is
        faster depends on the backend (a GPU runs 8 images in hardly more time than 5, a CPU core
        does not), so the choice is made from the times that the warm-up measured.
        """
        full = max((size for size in self._sizes if size <= waiting), default=None)
        padded = min((size for size in self._sizes if size > waiting), default=None)
        if full is None or padded is None:
            return full or self._sizes[0]
        per_round = self._seconds.get((group, full)), self._seconds.get((group, padded))
        if per_round[0] is None or per_round[1] is None:
            return full
        return padded if per_round[1] < per_round[0] * waiting / full else full

    def _process(self, batch: list[T]) -> list[R | Exception]:
        """Results of a batch; when it fails, each member gets one try alone."""
        try:
            return list(self._timed(batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            log.warning(
                "%s: a batch of %d failed, trying its members singly: %r", self.name, len(batch), error
            )
            return [outcome for item in batch for outcome in self._process([item])]

    def _timed(self, batch: list[T]) -> Sequence[R]:
        padding = next(size for size in self._sizes if size >= len(batch)) - len(batch)
        started = time.perf_counter()
        results = self._work([*batch, *[batch[-1]] * padding])
        seconds = time.perf_counter() - started
        if len(results) != len(batch) + padding:
            raise RuntimeError(f"{self.name} made {len(results)} results of {len(batch) + padding} items")
        self._meters.seconds.observe(seconds)
        self._meters.batch_size.observe(len(batch))
        self._meters.padding.inc(padding)
        for item in batch:
            item.spend(self.name, seconds)
        return results[: len(batch)]

    def _send_on(self, batch: list[T], outcomes: list[R | Exception]) -> None:
        # Handed over together, so that the next phase finds a batch and not its first member.
        targets: dict[Phase[T, Any] | None, list[T]] = defaultdict(list)
        for item, outcome in zip(batch, outcomes):
            targets[self._target(item, outcome)].append(item)
        returning = targets.pop(self, [])
        for phase, items in targets.items():
            if phase is not None:
                phase.put(items)
        self._release(batch, returning)

    def _target(self, item: T, outcome: R | Exception) -> Phase[T, Any] | None:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            return self._route(item, outcome)
        except Exception as error:
            log.warning("%s: an image failed: %r", self.name, error)
            item.fail(error)
            return None

    def _release(self, batch: list[T], returning: list[T]) -> None:
        """Ends a batch; `returning` items wait for their next round in the room they already had."""
        with self._changed:
            self._running -= len(batch)
            if not self._closed:
                self._insert(returning)
                return
        _fail(returning, _closing())


def _fail(items: Sequence[Item], error: Exception) -> None:
    for item in items:
        item.fail(error)


def _closing() -> ServiceError:
    return ServiceError("The server is shutting down.", status=503, code="shutting_down")
