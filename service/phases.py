"""One phase of the pipeline: a bounded inbox, a batch rule, a worker, a histogram."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from .errors import ServiceError
from .image import ONLINE, CancelledError
from .latency import LatencyModel
from .metrics import StageMeters

log = logging.getLogger(__name__)


class Item(Protocol):
    """What passes through phases."""

    @property
    def order(self) -> tuple[float, ...]:
        """Smaller goes first; equals go in order of arrival."""

    @property
    def lane(self) -> int:
        """Behind `ONLINE` it takes no room, and places in batches only where nothing else needs them."""

    @property
    def cancelled(self) -> bool:
        """Nobody wants it any more: it leaves where it waits, or after the batch it is in."""

    def spend(self, stage: str, seconds: float) -> None:
        """Told after each batch that the item was in."""

    def fail(self, error: Exception) -> None:
        """Told instead of further phases when the item cannot be finished."""

    def retry(self) -> bool:
        """Asked when a worker was lost with the item: whether it may be tried again."""


T = TypeVar("T", bound=Item)
R = TypeVar("R")


def in_order(items: Sequence[T]) -> list[T]:
    return sorted(items, key=lambda item: item.order)


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
        latency: LatencyModel | None = None,
        group: Callable[[T], Hashable] = lambda item: None,
        arrange: Callable[[Sequence[T]], list[T]] = in_order,
        revive: Callable[[float], bool] = lambda since: False,
        max_wait: float = 0.0,
        in_company: Callable[[int], bool] = lambda waiting: True,
        quiet: Callable[[], bool] = lambda: True,
        brief: Callable[[T], bool] = lambda item: False,
        workers: int = 1,
    ) -> None:
        """
        Args:
            sizes: Batch sizes that `work` accepts.
            capacity: Items that are online inside, waiting or in a batch, beyond which `put` blocks.
            latency: Learns what batches take, and decides when padding is faster.
            group: Only items with equal groups share a batch.
            arrange: The order in which waiting items go.
            revive: Asked when work on a single item, begun at a time, fails: whether it was the
                engine's fault and the engine is well again, so that another try is worth it.
            max_wait: Seconds for which the first item waits for a full batch.
            in_company: Told how many items wait, whether others are about: with nobody else there
                is nobody to wait for.
            quiet: Whether items that are not online may have batches to themselves now; `wake` is
                called when that becomes true. Else they only fill places that would be padded.
            brief: Whether waking a worker for an item is not worth it: it is worked on by the thread that puts
                it, alone and at once. Asked again for each round.
        """
        self.name, self._work, self._route = name, work, route
        self._group, self._arrange, self._revive = group, arrange, revive
        self._sizes, self._capacity, self._max_wait = sorted(sizes), capacity, max_wait
        self._in_company, self._quiet, self._brief = in_company, quiet, brief
        self._meters, self._latency = meters, latency or LatencyModel()
        self._waiting: list[T] = []
        self._running = 0
        self._batches: dict[threading.Thread, tuple[list[T], float]] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [self._new_worker() for _ in range(workers)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def put(self, items: Sequence[T]) -> None:
        """Adds items, waiting for room as long as it takes; a closed phase fails them."""
        # Told apart before any is worked on, which may change what they are.
        brief = {id(item): item for item in items if not self._closed and self._brief(item)}
        items = [item for item in items if id(item) not in brief]
        for item in brief.values():
            self._run_here(item)
        while items:
            with self._changed:
                fitting = self._wait_for_room(items)
                if self._closed:
                    break
                self._insert(items[:fitting])
            items = items[fitting:]
        _fail(items, _closing())

    def warm(self, items: Sequence[T]) -> None:
        """Runs one batch on the caller's thread, twice, and remembers what the quicker run took."""
        times = list[float]()
        for _ in range(2):
            started = time.perf_counter()
            results = self._work(items)
            times.append(time.perf_counter() - started)
        self._latency.observe(self.name, self._group(items[0]), len(items), min(times))
        for item, result in zip(items, results):
            self._route(item, result)

    def drop_cancelled(self) -> None:
        """Fails the waiting items that nobody wants any more; their places are free at once."""
        with self._changed:
            dropped = [item for item in self._waiting if item.cancelled]
            if dropped:
                self._set_waiting([item for item in self._waiting if not item.cancelled])
        _fail(dropped, CancelledError())

    def wake(self) -> None:
        """It has become quiet."""
        with self._changed:
            self._changed.notify_all()

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._batches

    def oldest_batch(self) -> float:
        """Seconds for which a batch has been running; 0 when none is."""
        with self._changed:
            began = min((began for _, began in self._batches.values()), default=None)
            return 0.0 if began is None else time.perf_counter() - began

    def give_up_stalled(self, seconds: float) -> list[threading.Thread]:
        """Gives up batches that have been running for longer: each item is tried once more.

        A thread inside an engine cannot be ended. It is left alone, and what it may still bring is
        thrown away.

        Returns:
            The threads that are in them, which `replace` of their own phases is to be told.
        """
        now = time.perf_counter()
        with self._changed:
            lost = [thread for thread, (_, began) in self._batches.items() if now - began > seconds]
            items = [item for thread in lost for item in self._batches.pop(thread)[0]]
            again = [item for item in items if item.retry()]
            self._running -= _online(items)
            self._insert(again)
        message = "The engine stalled twice on this picture."
        kept = set(map(id, again))
        _fail(
            [item for item in items if id(item) not in kept],
            ServiceError(message, status=503, code="engine_stalled"),
        )
        return lost

    def replace(self, lost: Collection[threading.Thread]) -> None:
        """Puts new workers in the places of its own that are among the lost."""
        with self._changed:
            kept = [thread for thread in self._threads if thread not in lost]
            fresh = [] if self._closed else [self._new_worker() for _ in self._threads[len(kept) :]]
            self._threads = [*kept, *fresh]
        for thread in fresh:
            thread.start()

    def close(self, timeout: float) -> None:
        """Ends the workers after the batch they are in; whatever still waits fails."""
        with self._changed:
            self._closed = True
            abandoned = self._waiting
            self._set_waiting([])
        _fail(abandoned, _closing())
        for thread in self._threads:
            thread.join(timeout)

    def _run_here(self, item: T) -> None:
        with self._changed:
            self._begin([item])
        outcome = self._process([item])[0]
        if self._is_given_up():
            return
        target = self._target(item, outcome)
        self._release([item], [])
        if target is not None:
            target.put([item])

    def _new_worker(self) -> threading.Thread:
        return threading.Thread(target=self._run, name=self.name, daemon=True)

    def _room(self) -> int:
        return self._capacity - _online(self._waiting) - self._running

    def _wait_for_room(self, items: Sequence[T]) -> int:
        """How many fit when some do, or when the phase is closed."""
        self._changed.wait_for(lambda: self._closed or self._fitting(items) > 0)
        return self._fitting(items)

    def _fitting(self, items: Sequence[T]) -> int:
        """How many of the items, from the first one on, there is room for."""
        room = max(0, self._room())
        online = itertools.accumulate(item.lane == ONLINE for item in items)
        return sum(needed <= room for needed in online)

    def _insert(self, items: Sequence[T]) -> None:
        self._set_waiting([*self._waiting, *items])

    def _set_waiting(self, items: list[T]) -> None:
        # By difference: several versions of a model count on one gauge.
        self._meters.depth.inc(_online(items) - _online(self._waiting))
        self._waiting = items
        self._changed.notify_all()

    def _run(self) -> None:
        while threading.current_thread() in self._threads and (batch := self._take()):
            outcomes = self._process(batch)
            if not self._is_given_up():
                self._send_on(batch, outcomes)

    def _begin(self, batch: list[T]) -> None:
        self._running += _online(batch)
        self._batches[threading.current_thread()] = batch, time.perf_counter()

    def _is_given_up(self) -> bool:
        """Of a batch that has been worked on, whether it is this thread's no longer."""
        with self._changed:
            return self._batches.pop(threading.current_thread(), None) is None

    def _take(self) -> list[T]:
        """The next batch in order; nothing once the phase is closed."""
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._may_start())
                if self._max_wait and self._in_company(_online(self._waiting)):
                    self._changed.wait_for(self._worth_starting, self._max_wait)
            self.drop_cancelled()
            with self._changed:
                if self._may_start() and not self._closed:
                    batch = self._choose()
                    self._begin(batch)
                    return batch
        return []

    def _may_start(self) -> bool:
        return _online(self._waiting) > 0 or (bool(self._waiting) and self._quiet())

    def _choose(self) -> list[T]:
        """Takes the first item out, with those next in order that may share its batch: one of the size
        that those online would have alone, if there are any, else one that is soon over."""
        ordered = self._arrange(self._waiting)
        group = self._group(ordered[0])
        alike = [item for item in ordered if self._group(item) == group]
        brief = self._latency.brief_batch(self.name, group, self._sizes)
        count = _online(alike) or min(len(alike), brief)
        count = min(count, self._latency.best_batch(self.name, group, self._sizes, count))
        batch = alike[: self._places(count)]
        chosen = set(map(id, batch))
        self._set_waiting([item for item in ordered if id(item) not in chosen])
        return batch

    def _places(self, items: int) -> int:
        """Of the batch that so many items make."""
        return next(size for size in self._sizes if size >= items)

    def _worth_starting(self) -> bool:
        return self._closed or _online(self._waiting) >= self._sizes[-1]

    def _process(self, batch: list[T]) -> list[R | Exception]:
        """Results of a batch; when it fails, those online get one try without the others, then each
        member one alone, and after an engine was revived another."""
        started = time.perf_counter()
        try:
            return list(self._timed(batch))
        except Exception as error:
            log.warning("%s: a batch of %d failed: %r", self.name, len(batch), error)
            if len(batch) > 1:
                return [outcome for part in _parts(batch) for outcome in self._process(part)]
            return self._again(batch, started, error)

    def _again(self, batch: list[T], started: float, error: Exception) -> list[R | Exception]:
        try:
            return list(self._timed(batch)) if self._revive(started) else [error]
        except Exception as second:
            return [second]

    def _timed(self, batch: list[T]) -> Sequence[R]:
        padding = self._places(len(batch)) - len(batch)
        group = self._group(batch[0])
        started = time.perf_counter()
        results = self._work([*batch, *[batch[-1]] * padding])
        seconds = time.perf_counter() - started
        if len(results) != len(batch) + padding:
            raise RuntimeError(f"{self.name} made {len(results)} results of {len(batch) + padding} items")
        self._latency.observe(self.name, group, len(batch) + padding, seconds)
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
            if item.cancelled:
                raise CancelledError
            if isinstance(outcome, Exception):
                raise outcome
            return self._route(item, outcome)
        except Exception as error:
            if not isinstance(error, CancelledError):
                log.warning("%s: an image failed: %r", self.name, error)
            item.fail(error)
            return None

    def _release(self, batch: list[T], returning: list[T]) -> None:
        """Ends a batch; `returning` items wait for their next round in the room they already had."""
        with self._changed:
            self._running -= _online(batch)
            if not self._closed:
                self._insert(returning)
                return
        _fail(returning, _closing())


def _online(items: Sequence[Item]) -> int:
    return sum(item.lane == ONLINE for item in items)


def _parts(batch: list[T]) -> list[list[T]]:
    """What is tried in place of a batch that failed, in its order: those online come first."""
    online = _online(batch)
    if 0 < online < len(batch):
        return [batch[:online], batch[online:]]
    return [[item] for item in batch]


def _fail(items: Sequence[Item], error: Exception) -> None:
    for item in items:
        item.fail(error)


def _closing() -> ServiceError:
    return ServiceError("The server is shutting down.", status=503, code="shutting_down")
