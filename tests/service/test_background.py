"""Work that nobody waits for: it takes what is left over, all of it, and never more."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import ServiceError
from service.fairness import FairShare
from service.generator import Generator
from service.image import OFFLINE, ONLINE, CancelledError, Image
from service.latency import LatencyModel
from service.metrics import Metrics
from service.phases import Phase
from service.settings import Settings
from service.traffic import Traffic

from .fake_runtime import FakeRuntime, make_bundle
from .running import wait_until

SIZE = (64, 64)
METERS = Metrics().stage("model", "stage")


@dataclass(eq=False)
class Ticket:
    number: int
    lane: int
    rounds: int
    client: str
    group: str
    bad: bool = False
    done: int = 0
    cancelled: bool = False
    error: Exception | None = None

    @property
    def order(self) -> tuple[float, ...]:
        return self.lane, self.number

    @property
    def ended(self) -> bool:
        return self.error is not None or self.done == self.rounds

    def spend(self, stage: str, seconds: float) -> None:
        pass

    def fail(self, error: Exception) -> None:
        self.error = error

    def retry(self) -> bool:
        return False

    def copy(self) -> Ticket:
        return Ticket(self.number, self.lane, self.rounds, self.client, self.group, self.bad)


class Known(LatencyModel):
    """What batches take is given, and not measured."""

    def __init__(self, seconds: dict[int, float]) -> None:
        super().__init__()
        for group in "ab":
            for batch, taken in seconds.items():
                super().observe("stage", group, batch, taken)

    def observe(self, stage: str, group: Hashable, batch: int, seconds: float) -> None:
        pass


@dataclass
class Bench:
    """A phase without its threads: `step` does what a worker does, once."""

    sizes: tuple[int, ...]
    seconds: dict[int, float]
    items: list[Ticket] = field(default_factory=list)
    calls: list[list[Ticket]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fair = FairShare()
        self.phase: Phase[Ticket, int] = Phase(
            "stage",
            self._work,
            self._route,
            sizes=self.sizes,
            capacity=1000,
            meters=METERS,
            latency=Known(self.seconds),
            group=lambda item: item.group,
            arrange=lambda items: self.fair.arrange(items, lambda item: item.rounds - item.done),
            quiet=lambda: self.quiet,
        )

    @property
    def quiet(self) -> bool:
        return all(item.ended for item in self.items if item.lane == ONLINE)

    def put(self, items: Sequence[Ticket]) -> None:
        self.items += items
        self.fair.enter([item for item in items if item.lane == ONLINE])
        self.phase.put(items)

    def step(self) -> list[Ticket]:
        """The batch that a worker takes next; none if it would wait."""
        if not self.phase._may_start():
            return []
        batch = self.phase._take()
        outcomes = self.phase._process(batch)
        self.phase._batches.clear()
        self.phase._send_on(batch, outcomes)
        return batch

    def _work(self, batch: Sequence[Ticket]) -> list[int]:
        self.calls.append(list(batch))
        if any(item.bad for item in batch):
            raise ValueError("bad ticket")
        return [item.done + 1 for item in batch]

    def _route(self, item: Ticket, result: int) -> Phase[Ticket, Any] | None:
        item.done = result
        if item.lane == ONLINE:
            self.fair.charge(item)
        return None if item.done == item.rounds else self.phase


tickets = st.builds(
    Ticket,
    number=st.just(0),
    lane=st.sampled_from([ONLINE, OFFLINE]),
    rounds=st.integers(1, 4),
    client=st.sampled_from("xyz"),
    group=st.sampled_from("ab"),
)
arrivals = st.lists(st.lists(tickets, max_size=6), min_size=1, max_size=8)
sizes = st.sampled_from([(1,), (1, 2, 4), (4,), (2, 8), (1, 3, 5), (1, 2, 4, 8)])
seconds = st.dictionaries(st.integers(1, 8), st.floats(0.001, 0.1), max_size=6)


def online(batch: Sequence[Ticket]) -> list[int]:
    return [item.number for item in batch if item.lane == ONLINE]


@hypothesis_settings(max_examples=150)
@given(arrivals, sizes, seconds)
def test_live_batches_are_as_without_and_the_rest_fills_every_gap(
    arriving: list[list[Ticket]], sizes: tuple[int, ...], seconds: dict[int, float]
) -> None:
    """Two phases side by side, one of them with background work; both are asked for a batch after each arrival."""
    mixed, alone = Bench(sizes, seconds), Bench(sizes, seconds)
    number = 0
    while arriving or not all(item.ended for item in mixed.items):
        new = arriving.pop(0) if arriving else []
        for item in new:
            item.number = number = number + 1
        mixed.put(new)
        alone.put([item.copy() for item in new if item.lane == ONLINE])
        waiting = [item for item in mixed.items if not item.ended]
        batch, expected = mixed.step(), alone.step()
        assert online(batch) == online(expected)
        if expected:  # as many places as without
            assert len(mixed.calls[-1]) == len(alone.calls[-1])
            spare = len(alone.calls[-1]) - len(expected)
            alike = [item for item in waiting if item.lane == OFFLINE and item.group == batch[0].group]
            assert len(batch) - len(expected) == min(spare, len(alike)), "a place was wasted"
        elif waiting:
            assert batch, "idle with work waiting"
    assert all(item.done == item.rounds for item in mixed.items)
    assert not mixed.phase._waiting
    assert mixed.phase._running == 0


@given(st.lists(st.tuples(tickets, st.booleans()), min_size=1, max_size=12))
def test_a_bad_picture_of_the_background_costs_live_ones_one_more_try(
    asked: list[tuple[Ticket, bool]],
) -> None:
    bench = Bench((4,), {})
    for number, (item, bad) in enumerate(asked):
        item.number, item.rounds, item.bad = number, 1, bad and item.lane == OFFLINE
    bench.put([item for item, _ in asked])
    while not all(item.ended for item in bench.items):
        bench.step()
    for item, bad in asked:
        assert (item.error is not None) == (bad and item.lane == OFFLINE)
        calls = [call for call in bench.calls if item in call]
        assert item.lane == OFFLINE or len(calls) <= 2


def test_the_background_takes_no_room() -> None:
    bench = Bench((1, 2), {})
    bench.phase._capacity = 2
    crowd = [Ticket(number, OFFLINE, 1, "x", "a") for number in range(10)]
    live = [Ticket(number, ONLINE, 1, "x", "a") for number in (10, 11)]
    bench.put(crowd)
    bench.put([*live, Ticket(12, OFFLINE, 1, "x", "a")])
    assert bench.phase._room() == 0
    assert bench.step() == live


def new_generator(runtime: FakeRuntime, settings: Settings, traffic: Traffic | None = None) -> Generator:
    generator = Generator("fake", runtime, settings, Metrics(), traffic)
    generator.warm_up()
    runtime.calls.clear()
    runtime.levels.clear()
    return generator


def background(count: int, steps: int = 4) -> list[Image]:
    return [Image(f"picture {seed}", seed, steps, SIZE, lane=OFFLINE) for seed in range(count)]


def finished(images: Sequence[Image]) -> list[bytes]:
    return [image.file.result(20) for image in images]


def test_a_live_picture_waits_for_one_step_that_has_begun_and_no_more(settings: Settings) -> None:
    runtime = FakeRuntime(
        make_bundle(sizes=(SIZE,)), image_seconds=0.005
    )  # so that a place is never for nothing
    generator = new_generator(runtime, settings)
    runtime.gate.clear()
    crowd = background(16)
    generator.fill_in(crowd)
    wait_until(lambda: generator._denoise._batches)
    live = Image("a live one", 99, 4, SIZE)
    generator.submit([live])
    wait_until(lambda: generator._denoise._waiting and live in generator._denoise._waiting)
    before = len(runtime.levels)
    runtime.gate.set()
    finished([live])
    begun, *own = runtime.levels[before : before + 5]
    assert set(begun) == {1.0}
    assert own == [(1.0,), (0.75,), (0.5,), (0.25,)]
    assert finished(crowd)
    generator.close()


def test_pictures_of_the_background_are_those_of_the_live_route(settings: Settings) -> None:
    generator = new_generator(FakeRuntime(make_bundle(sizes=(SIZE,))), settings)
    live = [Image(image.prompt, image.seed, image.steps, SIZE) for image in background(5)]
    crowd = background(5)
    generator.fill_in(crowd)
    generator.submit(live)
    assert finished(crowd) == finished(live)
    generator.close()


def test_admission_and_shares_know_nothing_of_the_background(settings: Settings) -> None:
    runtime = FakeRuntime(make_bundle(sizes=(SIZE,)), call_seconds=0.005)
    small = settings.model_copy(update={"queue_limit": 4})
    generator, without = new_generator(runtime, small), new_generator(FakeRuntime(runtime.bundle), small)
    runtime.gate.clear()
    generator.fill_in(background(40))
    wait_until(lambda: generator._denoise._batches)
    assert (generator.inflight, generator.idle) == (0, True)
    live = [Image("live", seed, 4, SIZE, client="a") for seed in range(4)]
    generator.submit(live)  # all that the door lets in
    with pytest.raises(ServiceError, match="The queue is full: 4 of at most 4"):
        generator.submit([Image("live", 9, 4, SIZE)])
    assert generator._fair._served.keys() == {"a"}
    runtime.gate.set()
    finished(live)
    assert generator._fair._served == without._fair._served == {}
    generator.close()
    without.close()


def test_other_models_of_the_process_count_too(settings: Settings) -> None:
    traffic = Traffic()
    busy = FakeRuntime(make_bundle(sizes=(SIZE,)))
    first, second = new_generator(busy, settings, traffic), None
    try:
        runtime = FakeRuntime(make_bundle(sizes=(SIZE,)))
        second = new_generator(runtime, settings, traffic)
        busy.gate.clear()
        live = Image("live", 1, 1, SIZE)
        first.submit([live])
        crowd = background(3)
        second.fill_in(crowd)
        assert not threading.Event().wait(0.1)
        assert runtime.calls == [], "it waits while the other model has somebody"
        busy.gate.set()
        finished([live, *crowd])
        assert traffic.quiet
    finally:
        for generator in (first, second):
            if generator is not None:
                generator.close()


def test_the_background_goes_when_nobody_wants_it_and_when_its_model_does(settings: Settings) -> None:
    runtime = FakeRuntime(make_bundle(sizes=(SIZE,)))
    generator = new_generator(runtime, settings)
    runtime.gate.clear()
    crowd = background(20)
    generator.fill_in(crowd)
    wait_until(lambda: generator._denoise._batches)
    generator.cancel(crowd[10:])
    dropped = [image for image in crowd[10:] if image.file.done()]
    assert dropped, "those that wait leave at once"
    assert all(isinstance(image.file.exception(), CancelledError) for image in dropped)
    generator.close_door()
    with pytest.raises(ServiceError, match="shutting down"):
        generator.fill_in(background(1))
    closing = threading.Thread(target=generator.close)
    closing.start()
    runtime.gate.set()
    closing.join(20)
    for image in crowd:
        assert isinstance(image.file.exception(20), ServiceError)


def test_traffic_tells_when_the_last_one_has_left() -> None:
    traffic, told = Traffic(), list[bool]()

    def listener() -> None:
        told.append(traffic.quiet)

    traffic.listen(listener)
    traffic.enter(2)
    traffic.leave()
    assert (traffic.quiet, told) == (False, [])
    traffic.leave()
    assert (traffic.quiet, told) == (True, [True])
    traffic.forget(listener)
    traffic.enter(1)
    traffic.leave()
    assert told == [True]
