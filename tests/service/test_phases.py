"""The phase alone: nothing lost, nothing doubled, nothing too large, first come first served."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ServiceError
from service.metrics import Metrics
from service.phases import Phase

from .running import wait_until


@dataclass(eq=False)
class Ticket:
    number: int
    priority: int = 0
    rounds: int = 1
    group: str = "a"
    bad: bool = False
    done: int = 0
    outcomes: list[object] = field(default_factory=list)

    @property
    def order(self) -> tuple[float, ...]:
        return self.priority, self.number

    def spend(self, stage: str, seconds: float) -> None:
        assert seconds >= 0

    def fail(self, error: Exception) -> None:
        self.outcomes.append(error)


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
        assert isinstance(outcome, ValueError) if ticket.bad else outcome == ticket.rounds
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


@pytest.mark.parametrize(
    ("per_call", "per_item", "waiting", "expected"),
    [
        (1.0, 0.0, 5, 8),  # a call costs the same whatever is in it: pad
        (0.0, 1.0, 5, 4),  # every place costs: fill
        (0.0, 1.0, 3, 2),
        (1.0, 0.1, 3, 4),
        (1.0, 1.0, 8, 8),
        (1.0, 1.0, 20, 8),
        (1.0, 1.0, 1, 1),
    ],
)
def test_padding_is_chosen_when_the_warm_up_says_that_it_is_faster(
    per_call: float, per_item: float, waiting: int, expected: int
) -> None:
    recorder = Recorder((1, 2, 4, 8))
    recorder.phase._seconds = {(None, size): per_call + size * per_item for size in (1, 2, 4, 8)}
    assert recorder.phase._batch_size(None, waiting) == expected


def test_too_few_for_the_smallest_size_are_padded() -> None:
    recorder = Recorder((4, 8))
    recorder.phase.start()
    ticket = Ticket(0)
    recorder.phase.put([ticket])
    wait_until(lambda: ticket.outcomes)
    assert recorder.batches == [[ticket] * 4]
    assert ticket.outcomes == [1]
    recorder.phase.close(1)
