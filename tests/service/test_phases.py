"""The phase alone: nothing lost, nothing doubled, nothing too large, first come first served."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ServiceError
from service.image import ONLINE, CancelledError
from service.metrics import Metrics
from service.phases import Phase

from .running import wait_until


@dataclass(eq=False)
class Ticket:
    number: int
    priority: int = 0
    lane: int = ONLINE
    rounds: int = 1
    group: str = "a"
    bad: bool = False
    leaves_at: int | None = None
    done: int = 0
    attempts: int = 0
    cancelled: bool = False
    outcomes: list[object] = field(default_factory=list)

    @property
    def order(self) -> tuple[float, ...]:
        return self.priority, self.number

    def spend(self, stage: str, seconds: float) -> None:
        assert seconds >= 0

    def fail(self, error: Exception) -> None:
        self.outcomes.append(error)

    def retry(self) -> bool:
        self.attempts += 1
        return self.attempts == 1


class Recorder:
    """A phase whose batches are kept for inspection."""

    def __init__(self, sizes: Sequence[int] = (1, 2, 4), capacity: int = 8, **options: Any) -> None:
        self.batches: list[list[Ticket]] = []
        self.largest_inside = 0
        self.gate = threading.Event()
        self.gate.set()
        meters = Metrics().stage("model", "stage")
        self.phase: Phase[Ticket, int] = Phase(
            "stage", self._work, self._route, sizes=sizes, capacity=capacity, meters=meters, **options
        )

    def _work(self, batch: Sequence[Ticket]) -> list[int]:
        self.gate.wait()
        self.batches.append(list(batch))
        inside = len(self.phase._waiting) + self.phase._running
        self.largest_inside = max(self.largest_inside, inside)
        if any(ticket.bad for ticket in batch):
            raise ValueError("bad ticket")
        return [ticket.done + 1 for ticket in batch]

    def _route(self, ticket: Ticket, result: int) -> Phase[Ticket, Any] | None:
        ticket.done = result
        ticket.cancelled = ticket.done == ticket.leaves_at
        if ticket.done < ticket.rounds:
            return self.phase
        ticket.outcomes.append(ticket.done)
        return None


tickets = st.builds(
    Ticket,
    number=st.just(0),
    priority=st.integers(0, 2),
    rounds=st.integers(1, 4),
    group=st.sampled_from("ab"),
    bad=st.sampled_from([False, False, False, True]),
    leaves_at=st.sampled_from([None, None, 1, 2]),
)


@settings(max_examples=60)
@given(
    st.lists(tickets, min_size=1, max_size=40),
    st.sampled_from([(1,), (1, 2, 4), (4,), (2, 8), (1, 3, 5)]),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_every_item_comes_out_exactly_once(
    given_tickets: list[Ticket], sizes: tuple[int, ...], capacity: int, shuffle: random.Random
) -> None:
    for number, ticket in enumerate(given_tickets):
        ticket.number = number
    recorder = Recorder(sizes, capacity, group=lambda ticket: ticket.group)
    recorder.phase.start()
    left = list(given_tickets)
    while left:
        count = shuffle.randint(1, len(left))
        recorder.phase.put(left[:count])
        left = left[count:]
    wait_until(lambda: all(ticket.outcomes for ticket in given_tickets))
    recorder.phase.close(1)

    for ticket in given_tickets:
        (outcome,) = ticket.outcomes
        if ticket.bad:
            assert isinstance(outcome, ValueError)
        elif ticket.leaves_at is not None and ticket.leaves_at < ticket.rounds:
            assert isinstance(outcome, CancelledError)
            assert ticket.done == ticket.leaves_at
        else:
            assert outcome == ticket.rounds
    assert recorder.largest_inside <= capacity
    for batch in recorder.batches:
        assert len(batch) in sizes
        assert len({ticket.group for ticket in batch}) == 1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=2, max_size=24))
def test_order_is_priority_then_arrival(entries: list[tuple[int, int]]) -> None:
    recorder = Recorder((1, 2, 4), capacity=100)
    items = [Ticket(number, priority, rounds) for number, (priority, rounds) in enumerate(entries)]
    recorder.gate.clear()
    recorder.phase.put(items)
    recorder.phase.start()
    recorder.gate.set()
    wait_until(lambda: all(item.outcomes for item in items))
    recorder.phase.close(1)
    first_seen = list(dict.fromkeys(item for batch in recorder.batches for item in batch))
    assert first_seen == sorted(items, key=lambda item: item.order)


def test_items_of_different_rounds_share_a_batch() -> None:
    recorder = Recorder((1, 2, 4), capacity=100)
    items = [Ticket(0, rounds=4), Ticket(1, rounds=1), Ticket(2, rounds=2), Ticket(3, rounds=1)]
    newcomer = Ticket(4, rounds=1)
    recorder.phase.put([*items, newcomer])
    recorder.phase.start()
    wait_until(lambda: all(item.outcomes for item in [*items, newcomer]))
    recorder.phase.close(1)
    # First comers keep their places, newcomers take those of the finished.
    numbers = [[item.number for item in batch] for batch in recorder.batches]
    assert numbers == [[0, 1, 2, 3], [0, 2], [0, 4], [0]]
    assert [item.done for item in items] == [4, 1, 2, 1]


def test_a_failing_item_does_not_hurt_its_batch_mates() -> None:
    recorder = Recorder((4,), capacity=8)
    items = [Ticket(0), Ticket(1, bad=True), Ticket(2), Ticket(3)]
    recorder.phase.put(items)
    recorder.phase.start()
    wait_until(lambda: all(item.outcomes for item in items))
    assert [item.outcomes[0] for item in items if not item.bad] == [1, 1, 1]
    assert isinstance(items[1].outcomes[0], ValueError)
    # One merged try, then one for each.
    assert len(recorder.batches) == 5
    recorder.phase.close(1)


def test_a_failing_route_fails_its_item_and_not_the_worker() -> None:
    recorder = Recorder()
    broken, fine = Ticket(0), Ticket(1)
    route = recorder.phase._route

    def fragile(ticket: Ticket, result: int) -> Phase[Ticket, Any] | None:
        if ticket is broken:
            raise RuntimeError("broken route")
        return route(ticket, result)

    recorder.phase._route = fragile
    recorder.phase.start()
    recorder.phase.put([broken])
    recorder.phase.put([fine])
    wait_until(lambda: broken.outcomes and fine.outcomes)
    assert isinstance(broken.outcomes[0], RuntimeError)
    assert fine.outcomes == [1]
    recorder.phase.close(1)


def test_missing_results_are_a_failure_and_not_a_loss() -> None:
    recorder = Recorder((1,))
    recorder.phase._work = lambda batch: []
    recorder.phase.start()
    ticket = Ticket(0)
    recorder.phase.put([ticket])
    wait_until(lambda: ticket.outcomes)
    assert "0 results of 1" in str(ticket.outcomes[0])
    recorder.phase.close(1)


def test_a_full_inbox_makes_the_sender_wait() -> None:
    recorder = Recorder((1,), capacity=3)
    recorder.gate.clear()
    recorder.phase.start()
    items = [Ticket(number) for number in range(7)]
    sender = threading.Thread(target=recorder.phase.put, args=(items,))
    sender.start()
    time.sleep(0.1)
    assert sender.is_alive()
    assert recorder.phase._room() == 0
    recorder.gate.set()
    sender.join(5)
    wait_until(lambda: all(item.outcomes for item in items))
    recorder.phase.close(1)


def test_closing_fails_what_waits_and_what_comes_later() -> None:
    recorder = Recorder((1,), capacity=10)
    recorder.gate.clear()
    recorder.phase.start()
    running, waiting, late = Ticket(0, rounds=3), Ticket(1), Ticket(2)
    recorder.phase.put([running])
    wait_until(lambda: recorder.phase._running)
    recorder.phase.put([waiting])
    recorder.phase.close(0.01)
    recorder.phase.put([late])
    recorder.gate.set()
    wait_until(lambda: running.outcomes)
    for ticket in (running, waiting, late):
        (outcome,) = ticket.outcomes
        assert isinstance(outcome, ServiceError)
        assert (outcome.status, outcome.code) == (503, "shutting_down")


def test_the_first_item_waits_for_company_but_not_for_long() -> None:
    recorder = Recorder((1, 2, 4), max_wait=0.3)
    recorder.phase.start()
    started = time.perf_counter()
    recorder.phase.put([Ticket(0)])
    recorder.phase.put([Ticket(1), Ticket(2), Ticket(3)])
    wait_until(lambda: recorder.batches)
    assert time.perf_counter() - started < 0.25
    recorder.phase.put([Ticket(4)])
    wait_until(lambda: len(recorder.batches) == 2)
    assert 0.3 <= time.perf_counter() - started < 2
    assert [len(batch) for batch in recorder.batches] == [4, 1]
    recorder.phase.close(1)


def test_too_few_for_the_smallest_size_are_padded() -> None:
    recorder = Recorder((4, 8))
    recorder.phase.start()
    ticket = Ticket(0)
    recorder.phase.put([ticket])
    wait_until(lambda: ticket.outcomes)
    assert recorder.batches == [[ticket] * 4]
    assert ticket.outcomes == [1]
    recorder.phase.close(1)


def test_what_nobody_wants_leaves_where_it_waits_and_after_its_batch() -> None:
    recorder = Recorder((1,), capacity=3)
    recorder.gate.clear()
    recorder.phase.start()
    running, waiting, other = Ticket(0, rounds=4), Ticket(1), Ticket(2)
    recorder.phase.put([running])
    wait_until(lambda: recorder.phase._running)
    recorder.phase.put([waiting, other])
    running.cancelled = waiting.cancelled = True
    recorder.phase.drop_cancelled()
    assert isinstance(waiting.outcomes[0], CancelledError)
    assert recorder.phase._room() == 1
    recorder.gate.set()
    wait_until(lambda: running.outcomes and other.outcomes)
    assert isinstance(running.outcomes[0], CancelledError)
    assert recorder.batches == [[running], [other]]
    recorder.phase.close(1)


def test_an_engine_that_was_revived_gets_its_items_again() -> None:
    dead, asked = [True], []

    def revive(since: float) -> bool:
        asked.append(since)
        was, dead[0] = dead[0], False
        return was

    recorder = Recorder((1, 2), revive=revive)
    work = recorder.phase._work

    def fragile(batch: Sequence[Ticket]) -> Sequence[int]:
        if dead[0]:
            raise RuntimeError("dead")
        return work(batch)

    recorder.phase._work = fragile
    items = [Ticket(0), Ticket(1), Ticket(2, bad=True)]
    recorder.phase.put(items)
    recorder.phase.start()
    wait_until(lambda: all(item.outcomes for item in items))
    assert [item.outcomes for item in items[:2]] == [[1], [1]]
    assert isinstance(items[2].outcomes[0], ValueError)
    assert len(asked) == 2  # for the engine once, and once for the item that was to blame itself
    recorder.phase.close(1)


def test_items_of_a_stalled_worker_are_tried_once_more_and_its_results_thrown_away() -> None:
    recorder = Recorder((1, 2))
    recorder.gate.clear()
    recorder.phase.start()
    items = [Ticket(0), Ticket(1)]
    recorder.phase.put(items)
    wait_until(lambda: recorder.phase.oldest_batch() > 0.05)
    recorder.phase.replace(recorder.phase.give_up_stalled(0.05))
    wait_until(lambda: recorder.phase._running == 2)
    recorder.gate.set()
    wait_until(lambda: all(item.outcomes for item in items) and len(recorder.batches) == 2)
    assert [item.outcomes for item in items] == [[1], [1]]
    assert recorder.phase.oldest_batch() == 0
    later = Ticket(2)
    recorder.phase.put([later])
    wait_until(lambda: later.outcomes)
    recorder.phase.close(1)


def test_an_item_that_stalls_twice_is_failed_clearly() -> None:
    recorder = Recorder((1,))
    recorder.gate.clear()
    recorder.phase.start()
    item = Ticket(0)
    recorder.phase.put([item])
    for _ in range(2):
        wait_until(lambda: recorder.phase.oldest_batch() > 0.02)
        recorder.phase.replace(recorder.phase.give_up_stalled(0.02))
    (error,) = item.outcomes
    assert isinstance(error, ServiceError)
    assert (error.status, error.code) == (503, "engine_stalled")
    assert recorder.phase._room() == 8
    recorder.gate.set()
    recorder.phase.close(1)


def test_brief_items_are_done_by_whoever_puts_them() -> None:
    """At once, also while the workers are busy, and with the same end for those that fail."""
    recorder = Recorder(brief=lambda ticket: ticket.group == "brief")
    brief, failing, usual = Ticket(1, group="brief", rounds=2), Ticket(2, group="brief", bad=True), Ticket(3)
    recorder.phase.put([usual, brief, failing])  # no worker has been started
    assert brief.outcomes == [2]
    assert isinstance(failing.outcomes[0], ValueError)
    assert usual.outcomes == []
    assert [len(batch) for batch in recorder.batches] == [1, 1, 1]
    recorder.phase.start()
    wait_until(lambda: usual.outcomes)
    recorder.phase.close(5)
    late = Ticket(4, group="brief")
    recorder.phase.put([late])
    assert isinstance(late.outcomes[0], ServiceError)


def test_items_are_brief_or_not_anew_in_each_round() -> None:
    recorder = Recorder(brief=lambda ticket: ticket.done < 2)
    item = Ticket(1, rounds=3)
    recorder.phase.put([item])
    assert (item.done, item.outcomes, recorder.phase.idle) == (2, [], False)
    recorder.phase.start()
    wait_until(lambda: item.outcomes)
    assert item.outcomes == [3]
    assert recorder.phase.idle
    recorder.phase.close(5)


def test_a_worker_that_stalls_over_another_phases_item_is_replaced_in_its_own() -> None:
    """The item goes on in the phase in which it was; what the lost worker still brings is thrown away."""
    second = Recorder(brief=lambda ticket: ticket.attempts == 0)
    first = Recorder((1,))
    first.phase._route = lambda ticket, result: second.phase
    second.gate.clear()
    first.phase.start()
    second.phase.start()
    item, later = Ticket(1), Ticket(2)
    first.phase.put([item])
    wait_until(lambda: second.phase.oldest_batch() > 0.02)
    assert first.phase.oldest_batch() == 0
    lost = second.phase.give_up_stalled(0.02)
    for phase in (second.phase, first.phase):
        phase.replace(lost)
    second.gate.set()
    first.phase.put([later])
    wait_until(lambda: item.outcomes and later.outcomes and not lost[0].is_alive())
    assert (item.outcomes, later.outcomes) == ([1], [1])
    assert len(first.phase._threads) == len(second.phase._threads) == 1
    for phase in (first.phase, second.phase):
        assert phase._room() == 8
        phase.close(5)
