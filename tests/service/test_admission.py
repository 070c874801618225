"""Promises: what is admitted is ready in time, and nothing that was promised is made late."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.admission import LONGEST_RETRY, WINDOW, Admission, Bounds, refusal
from service.errors import ServiceError
from service.fairness import FairShare
from service.image import OFFLINE, Image
from service.latency import LatencyModel

SIZE = (64, 64)
STEP, REST = 0.01, 0.02
"""Seconds of a step, and of the other three phases together, for each image of a batch."""


def new_admission(
    images: int = 1000, seconds: float = 1000.0, patience: float = 3.0, sizes: tuple[int, ...] = (1,)
) -> Admission:
    latency = LatencyModel()
    for batch in sizes:
        for stage, group, each in (
            ("encode", False, REST / 2),
            ("denoise", SIZE, STEP),
            ("decode", SIZE, REST / 4),
            ("file", SIZE, REST / 4),
        ):
            latency.observe(stage, group, batch, batch * each)
    return Admission(Bounds(images, seconds, patience), latency, FairShare(), sizes)


def cost(image: Image) -> float:
    return REST + image.steps * STEP


asked = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from([1, 2, 4]),
        st.sampled_from([math.inf, 0.03, 0.1, 0.3, 1.0]),
        st.integers(1, 3),
    ),
    max_size=20,
)


@given(asked)
@example([("a", 1, 0.3, 2), ("a", 2, 0.3, 3), ("b", 2, math.inf, 1), ("b", 2, math.inf, 3), ("a", 1, 0.1, 1)])
def test_what_was_admitted_is_in_time_in_the_order_in_which_it_goes(
    requests: list[tuple[str, int, float, int]],
) -> None:
    """The admitted images, run one after another at the modelled speed, all meet their deadlines."""
    admission, inside = new_admission(), list[Image]()
    for client, steps, deadline, count in requests:
        images = [Image("a", index, steps, SIZE, client=client, deadline=deadline) for index in range(count)]
        try:
            admission.check(inside, images, now=0.0)
        except ServiceError:
            assert any(image.deadline < math.inf for image in [*inside, *images])
        else:
            inside += images
    clock = 0.0
    for image in admission._fair.arrange(inside, lambda image: image.steps):
        clock += cost(image)
        assert clock <= image.deadline + 1e-9


@given(st.floats(0.02, 0.2))
def test_a_request_is_refused_only_with_a_reason(deadline: float) -> None:
    """On an idle server everything that can be done at all is taken."""
    image = Image("a", 0, 2, SIZE, deadline=deadline)
    if deadline < cost(image):
        with pytest.raises(ServiceError, match="needs 40 ms") as refused:
            new_admission().check([], [image], now=0.0)
        assert (refused.value.status, refused.value.code) == (429, "deadline_unreachable")
        assert refused.value.headers == {"x-should-retry": "false"}
    else:
        new_admission().check([], [image], now=0.0)
        assert image.predicted == pytest.approx(cost(image))


def test_a_newcomer_with_less_time_may_go_first_but_not_at_the_cost_of_a_promise() -> None:
    admission = new_admission()
    patient = [Image("a", seed, 4, SIZE, deadline=0.2) for seed in range(3)]  # ready at 0.18
    admission.check([], patient, now=0.0)
    urgent = Image("a", 9, 1, SIZE, deadline=0.05)
    with pytest.raises(ServiceError, match="promised to others") as refused:
        admission.check(patient, [urgent], now=0.0)
    assert refused.value.headers["x-should-retry"] == "true"
    assert int(refused.value.headers["Retry-After-Ms"]) == pytest.approx(10, abs=1)
    for image in patient:
        image.deadline = 0.3
    admission.check(patient, [urgent], now=0.0)
    assert urgent.predicted == pytest.approx(0.03)


def test_what_is_late_anyway_is_no_reason_to_refuse_others() -> None:
    admission = new_admission()
    lost = Image("a", 0, 4, SIZE, deadline=0.01)
    admission.check([lost], [Image("a", 1, 1, SIZE)], now=0.0)
    admission.check([lost], [Image("a", 1, 1, SIZE, deadline=0.005 + 0.085)], now=0.0)


def test_waiting_as_long_as_told_is_enough() -> None:
    admission = new_admission()
    late = Image("a", 99, 1, SIZE, deadline=0.5)
    inside = [Image("a", seed, 4, SIZE, deadline=0.4 + 0.06 * seed / 20) for seed in range(20)]
    with pytest.raises(ServiceError) as refused:
        admission.check(inside, [late], now=0.0)
    wait = int(refused.value.headers["Retry-After-Ms"]) / 1000
    left = inside[math.ceil(wait / cost(inside[0])) :]
    late.deadline += wait
    admission.check(left, [late], now=wait)


def test_the_queue_is_bounded_in_seconds_and_in_images() -> None:
    short = new_admission(seconds=0.5)
    inside = [Image("a", seed, 4, SIZE) for seed in range(9)]  # 0.54 s
    with pytest.raises(ServiceError, match=r"0\.5 s of at most 0\.5 s") as refused:
        short.check(inside, [Image("a", 0, 1, SIZE)], now=0.0)
    assert refused.value.code == "queue_full"
    short.check(inside[:8], [Image("a", 0, 1, SIZE)], now=0.0)
    short.speed = 2.0  # phases that overlap get through it in half the time
    short.check(inside, [Image("a", 0, 1, SIZE)], now=0.0)
    with pytest.raises(ServiceError, match="9 of at most 9 images"):
        new_admission(images=9).check(inside, [Image("a", 0, 1, SIZE)], now=0.0)


@pytest.mark.parametrize(
    ("ahead", "deadline", "steps"),
    [
        (0, math.inf, 4),
        (2, math.inf, 4),
        (3, math.inf, 1),  # 180 ms before it starts, the patience of three times 60 ms used up
        (0, 0.06, 4),
        (0, 0.059, 2),
        (0, 0.035, 1),
        (1, 0.105, 2),
    ],
)
def test_open_step_counts_follow_load_and_deadline(ahead: int, deadline: float, steps: int) -> None:
    inside = [Image("a", seed, 4, SIZE) for seed in range(ahead)]
    for image in inside:
        image.deadline = deadline
    new = [Image("a", 9, 4, SIZE, deadline=deadline)]
    new_admission(patience=3.0).choose_steps(inside, new, [1, 2, 4], now=0.0)
    assert new[0].steps == steps


def test_an_idle_server_gives_all_steps_however_wrong_its_predictions_are() -> None:
    admission = new_admission()
    admission.slack = 1000.0
    new = [Image("a", 9, 4, SIZE)]
    admission.choose_steps([], new, [1, 2, 4], now=0.0)
    assert new[0].steps == 4


def test_speed_is_measured_while_there_is_a_queue() -> None:
    admission = new_admission()
    image = Image("a", 0, 4, SIZE)
    for number in range(200):  # three images in the time that the sum of phases allows for one
        admission.learn(image, queued=True, now=number * cost(image) / 3)
    assert admission.speed == pytest.approx(3, rel=0.1)
    before = admission.speed
    for number in range(200):
        admission.learn(image, queued=False, now=number * 10)
    assert admission.speed == before


def finished(admission: Admission, late: float) -> None:
    """An image was ready so many seconds later than was predicted."""
    admission.learn(Image("a", 0, 1, SIZE, admitted=0.0, predicted=1.0), queued=False, now=1.0 + late)


@given(st.lists(st.floats(-0.9, 5), min_size=1, max_size=200))
def test_the_slack_is_what_most_of_the_last_images_stay_under(late: list[float]) -> None:
    admission = new_admission()
    for seconds in late:
        finished(admission, seconds)
    recent = late[-WINDOW:]
    assert sum(seconds <= admission.slack + 1e-9 for seconds in recent) >= 0.95 * len(recent)
    assert any(seconds == pytest.approx(admission.slack) for seconds in recent)


def test_a_slack_that_was_too_large_is_forgotten() -> None:
    """After a stall nothing fits beside others, and on an idle server what fits alone still does."""
    admission = new_admission()
    for _ in range(WINDOW):
        finished(admission, 100.0)
    busy = [Image("a", 0, 1, SIZE)]
    with pytest.raises(ServiceError):
        admission.check(busy, [Image("a", 1, 1, SIZE, deadline=1.0)], now=0.0)
    for _ in range(WINDOW):
        alone = Image("a", 1, 1, SIZE, deadline=1.0)
        admission.check([], [alone], now=0.0)
        admission.learn(alone, queued=False, now=alone.admitted + alone.predicted)
    admission.check(busy, [Image("a", 1, 1, SIZE, deadline=1.0)], now=0.0)


def slowed_down() -> Admission:
    """It has learned figures several times those of its warm-up: an image of two steps took 40 ms."""
    admission = new_admission()
    for _ in range(50):
        admission._latency.observe("denoise", SIZE, 1, 10 * STEP)
    admission.learn(Image("b", 0, 2, SIZE), queued=False, now=9.5)
    return admission


def test_figures_of_a_slow_time_are_tried_again() -> None:
    """A deadline that the figures say nothing can meet, on a server that would meet it by now."""
    admission = slowed_down()
    with pytest.raises(ServiceError, match="idle server"):
        admission.check([], [Image("a", 0, 2, SIZE, deadline=10.05)], now=10.0)
    later = Image("a", 0, 2, SIZE, deadline=10.65)
    admission.check([], [later], now=10.6)
    assert later.predicted > 0.05


def test_a_trial_is_for_an_idle_server_and_for_what_it_could_do_once() -> None:
    admission, inside = slowed_down(), Image("b", 0, 4, SIZE)
    with pytest.raises(ServiceError, match="idle server"):
        admission.check([inside], [Image("a", 0, 2, SIZE, deadline=20.05)], now=20.0)
    with pytest.raises(ServiceError, match="idle server"):
        admission.check([], [Image("a", 0, 2, SIZE, deadline=20.03)], now=20.0)


def test_offline_work_waits_for_the_rest() -> None:
    admission = new_admission()
    offline = [Image("a", seed, 4, SIZE, lane=OFFLINE) for seed in range(10)]
    urgent = Image("a", 9, 1, SIZE, deadline=0.04)
    admission.check(offline, [urgent], now=0.0)


def test_company_in_the_batch_takes_time_too() -> None:
    """Where a batch of four takes a third longer than one image, all four are in it and wait for it."""
    latency = LatencyModel()
    for batch in (1, 2, 4):
        for stage, group in (("encode", False), ("decode", SIZE), ("file", SIZE)):
            latency.observe(stage, group, batch, 0.001)
        latency.observe("denoise", SIZE, batch, 0.04 + 0.005 * batch)
    admission = Admission(Bounds(1000, 1000.0, 3.0), latency, FairShare(), (1, 2, 4))
    company = [Image("a", seed, 1, SIZE) for seed in range(3)]
    admission.check([], [Image("a", 9, 1, SIZE, deadline=0.055)], now=0.0)
    with pytest.raises(ServiceError, match="not be ready in time"):
        admission.check(company, [Image("a", 9, 1, SIZE, deadline=0.055)], now=0.0)
    admission.check(company, [Image("a", 9, 1, SIZE, deadline=0.075)], now=0.0)


@given(st.floats(0, 1e6))
def test_retry_headers_agree(wait: float) -> None:
    headers = refusal("m", "queue_full", wait).headers
    seconds, milliseconds = int(headers["Retry-After"]), int(headers["Retry-After-Ms"])
    assert 1 <= seconds <= LONGEST_RETRY
    assert 1 <= milliseconds <= 1000 * seconds
    assert headers["x-should-retry"] == "true"
