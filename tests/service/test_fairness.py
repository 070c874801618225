"""Fair shares by step-images, deadlines within a share, and nobody forgotten."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from service.fairness import FairShare


@dataclass(frozen=True)
class Work:
    client: str
    number: int
    deadline: float = 0.0
    steps: int = 1
    lane: int = 0

    @property
    def order(self) -> tuple[float, ...]:
        return self.lane, self.deadline, self.number


def steps(work: Work) -> float:
    return work.steps


works = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([1.0, 2.0, 9.0]), st.integers(1, 4), st.integers(0, 1)),
    max_size=30,
).map(
    lambda rows: [
        Work(client, number, deadline, steps, lane)
        for number, (client, deadline, steps, lane) in enumerate(rows)
    ]
)


@given(works, st.randoms(use_true_random=False))
def test_everybody_goes_once_and_each_client_by_deadline(work: list[Work], shuffle: random.Random) -> None:
    fair = FairShare()
    fair.enter(work)
    for one in work:
        if shuffle.random() < 0.3:
            fair.charge(one)
    mixed = shuffle.sample(work, len(work))
    arranged = fair.arrange(mixed, steps)
    assert Counter(arranged) == Counter(work)
    assert [one.lane for one in arranged] == sorted(one.lane for one in work)
    for lane in (0, 1):
        for client in "abc":
            own = [one for one in arranged if (one.client, one.lane) == (client, lane)]
            assert own == sorted(own, key=lambda one: one.order)


@given(works)
def test_one_client_alone_goes_by_deadline_then_arrival(work: list[Work]) -> None:
    alone = [Work("a", one.number, one.deadline, one.steps, one.lane) for one in work]
    assert FairShare().arrange(alone[::-1], steps) == sorted(alone, key=lambda one: one.order)


@given(works)
def test_served_work_never_differs_by_more_than_one_image_while_both_wait(work: list[Work]) -> None:
    """Of two clients that both still have work, neither is ahead by more than its last image."""
    work = [Work(one.client, one.number, one.deadline, one.steps) for one in work]
    fair = FairShare()
    fair.enter(work)
    waiting, served = Counter(one.client for one in work), Counter[str]()
    largest = max((one.steps for one in work), default=0)
    for one in fair.arrange(work, steps):
        served[one.client] += one.steps
        waiting[one.client] -= 1
        counts = [served[client] for client in waiting if waiting[client]]
        assert max(counts, default=0) - min(counts, default=0) <= largest


def test_a_flood_does_not_hold_up_a_trickle() -> None:
    fair = FairShare()
    flood = [Work("flood", number, steps=4) for number in range(100)]
    fair.enter(flood)
    for one in flood[:10]:
        for _ in range(4):
            fair.charge(one)
        fair.leave(one)
    trickle = Work("trickle", 100, steps=4)
    fair.enter([trickle])
    arranged = fair.arrange([*flood[10:], trickle], steps)
    assert arranged.index(trickle) <= 1


def test_staying_away_saves_no_claim() -> None:
    fair = FairShare()
    busy = [Work("busy", number) for number in range(50)]
    away = Work("away", 50)
    fair.enter([away])
    fair.leave(away)
    fair.enter(busy)
    for one in busy[:20]:
        fair.charge(one)
    back = [Work("away", 51 + number) for number in range(20)]
    fair.enter(back)
    first = fair.arrange([*busy[20:], *back], steps)[:20]
    assert Counter(one.client for one in first) == {"busy": 10, "away": 10}


def test_a_client_that_is_not_in_yet_is_placed_as_it_will_be_when_it_is() -> None:
    """Admission asks where a newcomer would go, and promises by that."""
    fair = FairShare()
    busy = [Work("busy", number) for number in range(10)]
    fair.enter(busy)
    for _ in range(100):
        fair.charge(busy[0])
    new = [Work("new", 10 + number) for number in range(10)]
    before = fair.arrange([*busy, *new], steps)
    fair.enter(new)
    assert before == fair.arrange([*busy, *new], steps)
    assert Counter(one.client for one in before[:10]) == {"busy": 5, "new": 5}


def test_nothing_is_remembered_of_clients_that_left() -> None:
    fair = FairShare()
    for number in range(1000):
        work = Work(f"client {number}", number)
        fair.enter([work])
        fair.charge(work)
        fair.leave(work)
    assert not fair._served
    assert not fair._inside
