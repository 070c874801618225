"""Images of open step count make room for others while some are refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import Admission
from service.elasticity import CALM_SECONDS, REFUSED_SHARE, WINDOW_SECONDS, Ceiling
from service.errors import ServiceError
from service.image import Image

from .test_admission import SIZE, new_admission

CHOICES = (1, 2, 4)


def window(ceiling: Ceiling, number: int, taken: int, refused: int) -> list[int]:
    """So many images are taken and refused in the window of that number; what there is at its end."""
    ceiling.note(taken, True, number * WINDOW_SECONDS)
    if refused:
        ceiling.note(refused, False, number * WINDOW_SECONDS)
    return ceiling.under(CHOICES, (number + 1) * WINDOW_SECONDS)


def test_each_window_of_refusals_takes_one_away_but_not_the_last() -> None:
    ceiling = Ceiling()
    seen = [window(ceiling, number, 10, 10) for number in range(5)]
    assert seen == [[2, 1], [1], [1], [1], [1]]


def test_each_calm_gives_one_back() -> None:
    ceiling = Ceiling()
    for number in range(4):
        window(ceiling, number, 10, 10)
    last = 3 * WINDOW_SECONDS
    seen = [ceiling.under(CHOICES, last + calm * CALM_SECONDS) for calm in (0.9, 1.0, 1.9, 2.0, 50.0)]
    assert seen == [[1], [2, 1], [2, 1], [4, 2, 1], [4, 2, 1]]


def test_a_few_refusals_change_nothing_either_way() -> None:
    few = 99, round(100 * REFUSED_SHARE) - 1
    ceiling = Ceiling()
    assert [window(ceiling, number, *few) for number in range(9)] == [[4, 2, 1]] * 9
    assert window(ceiling, 9, 50, 50) == [2, 1]
    assert [window(ceiling, number, *few) for number in range(10, 30)] == [[2, 1]] * 20


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4), st.booleans())))
def test_it_falls_by_one_a_window_and_is_back_after_calms(events: list[tuple[float, int, bool]]) -> None:
    ceiling, now, refused = Ceiling(), 0.0, -math.inf
    for passed, images, taken in events:
        now += passed
        left = ceiling.under(CHOICES, now)
        assert left in ([4, 2, 1], [2, 1], [1])
        assert len(CHOICES) - len(left) <= now / WINDOW_SECONDS
        if now - refused > len(CHOICES) * CALM_SECONDS:
            assert left == [4, 2, 1]
        ceiling.note(images, taken, now)
        refused = refused if taken else now


def test_a_model_of_one_step_count_keeps_it() -> None:
    ceiling = Ceiling()
    for number in range(4):
        ceiling.note(1, False, number * WINDOW_SECONDS)
        assert ceiling.under([4], (number + 1) * WINDOW_SECONDS) == [4]


def fits(admission: Admission, inside: Image, new: Image, now: float) -> bool:
    try:
        admission.admit([inside], [new], CHOICES, now)
    except ServiceError:
        return False
    return True


def test_what_is_refused_for_want_of_room_lowers_the_steps_of_the_next() -> None:
    """A deadline that leaves room for two images of one step each, or for one of more."""
    admission, seen = new_admission(), list[tuple[int, bool]]()
    for now in (0.0, WINDOW_SECONDS, 2 * WINDOW_SECONDS):
        first, second = (Image("a", seed, 4, SIZE, deadline=now + 0.065) for seed in range(2))
        admission.admit([], [first], CHOICES, now)
        seen.append((first.steps, fits(admission, first, second, now)))
    assert seen == [(4, False), (2, False), (1, True)]


def test_a_deadline_that_nothing_can_meet_takes_no_steps_from_others() -> None:
    admission = new_admission()
    for number in range(100):
        hopeless = Image("a", number, 4, SIZE, deadline=0.01 * number + 0.001)
        with pytest.raises(ServiceError, match="Even an idle server"):
            admission.admit([], [hopeless], CHOICES, 0.01 * number)
    usual = Image("b", 0, 4, SIZE)
    admission.admit([], [usual], CHOICES, 1.0)
    assert usual.steps == 4
