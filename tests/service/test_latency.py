"""What batches take, learned; and the batch size that follows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.latency import OUTLIER, SHAPE_WEIGHT, WEIGHT, LatencyModel

SIZES = (1, 2, 4, 8)


def model(per_call: float, per_item: float) -> LatencyModel:
    latency = LatencyModel()
    for size in SIZES:
        latency.observe("denoise", "64x64", size, per_call + size * per_item)
    return latency


@pytest.mark.parametrize(
    ("per_call", "per_item", "waiting", "expected"),
    [
        (1.0, 0.0, 5, 8),  # a call costs the same whatever is in it: pad
        (0.0, 1.0, 5, 1),  # nothing is gained by company: first come, first served
        (0.0, 1.0, 100, 1),
        (0.5, 1.0, 3, 2),
        (1.0, 0.1, 3, 4),
        (1.0, 1.0, 8, 8),
        (1.0, 1.0, 20, 8),
        (1.0, 0.0, 1, 1),
    ],
)
def test_batches_are_large_where_that_is_faster(
    per_call: float, per_item: float, waiting: int, expected: int
) -> None:
    assert model(per_call, per_item).best_batch("denoise", "64x64", SIZES, waiting) == expected


@given(st.floats(0.001, 1), st.floats(0, 0.1), st.integers(1, 100))
def test_a_batch_is_allowed_and_the_fastest(per_call: float, per_item: float, waiting: int) -> None:
    size = model(per_call, per_item).best_batch("denoise", "64x64", SIZES, waiting)
    assert size in SIZES
    assert size // 2 < waiting
    rates = {each: min(each, waiting) / (per_call + each * per_item) for each in SIZES}
    assert rates[size] == pytest.approx(max(rates.values()))


def test_sizes_that_were_never_measured() -> None:
    assert LatencyModel().best_batch("denoise", None, SIZES, 5) == 4
    assert LatencyModel().best_batch("denoise", None, (4, 8), 1) == 4


def test_what_slows_one_size_down_slows_all() -> None:
    """A size that is not used any more must not look for ever as it did under load."""
    latency = model(1.0, 0.5)
    before = {size: latency.seconds("denoise", "64x64", size) for size in SIZES}
    for _ in range(60):
        latency.observe("denoise", "64x64", 8, 3 * 5.0)
    for _ in range(60):
        latency.observe("denoise", "64x64", 1, 1.5)
    for size in SIZES:
        assert latency.seconds("denoise", "64x64", size) == pytest.approx(before[size], rel=0.5)
    assert latency.best_batch("denoise", "64x64", SIZES, 4) == 4


@given(st.lists(st.floats(0.01, 0.011), min_size=1, max_size=50))
def test_the_mean_stays_among_what_was_measured(measured: list[float]) -> None:
    latency = LatencyModel()
    for seconds in measured:
        latency.observe("decode", None, 4, seconds)
    mean = latency.seconds("decode", None, 4)
    assert mean is not None
    assert min(measured) - 1e-12 <= mean <= max(measured) + 1e-12


def test_it_follows_a_change_and_survives_a_stall() -> None:
    latency = LatencyModel()
    latency.observe("decode", None, 1, 0.01)
    latency.observe("decode", None, 1, 1000.0)
    stalled = latency.seconds("decode", None, 1)
    grown = 0.01 * (1 + WEIGHT * (OUTLIER - 1))
    assert stalled == pytest.approx(grown + SHAPE_WEIGHT * (0.01 * OUTLIER - grown))
    for _ in range(60):
        latency.observe("decode", None, 1, 0.05)
    assert latency.seconds("decode", None, 1) == pytest.approx(0.05, rel=0.05)


def test_sizes_and_groups_are_told_apart() -> None:
    latency = model(1.0, 0.5)
    assert latency.seconds("denoise", "64x64", 3) == 3.0  # as the batch of four that it becomes
    assert latency.seconds("denoise", "64x64", 100) == 5.0
    assert latency.seconds("denoise", "64x32", 4) is None
    assert latency.per_image("denoise", "64x64") == 5.0 / 8
    assert latency.per_image("decode", "64x64") == 0.0


@pytest.mark.parametrize(
    ("per_call", "per_item", "expected"),
    [
        (1.0, 0.0, 8),  # 1, 1/2, 1/4, 1/8 an image
        (0.0, 1.0, 1),  # all the same
        (1.0, 1.0, 4),  # 2, 3/2, 5/4, 9/8
        (0.1, 1.0, 1),
    ],
)
def test_a_brief_batch_is_the_smallest_that_wastes_little(
    per_call: float, per_item: float, expected: int
) -> None:
    assert model(per_call, per_item).brief_batch("denoise", "64x64", SIZES) == expected


def test_nothing_is_known_of_a_batch_that_was_never_seen() -> None:
    assert LatencyModel().brief_batch("denoise", "64x64", SIZES) == 8
    assert model(1.0, 0.0).brief_batch("decode", "64x64", (2, 4)) == 4
