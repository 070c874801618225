"""On real graphs: a picture is a function of prompt, seed and step count alone."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.bundle import Bundle
from engines.errors import EngineError
from engines.runtime import generate, load_runtime
from engines.runtime.base import Floats
from engines.runtime.onnx import OnnxRuntime
from engines.runtime.sampler import MAX_SEED, clean_estimate, noisy_input

Order = tuple[str, int, int]
"""Prompt, seed and steps of one picture."""

PROMPTS = ("a red circle on a white background", "", "Überraschung 猫", "a blue star " * 20)
orders = st.tuples(
    st.sampled_from(PROMPTS), st.sampled_from([0, 1, 2**31, MAX_SEED]), st.sampled_from([1, 2, 4])
)
FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def alone(runtime: OnnxRuntime) -> Callable[[Order], np.ndarray]:
    """The picture of an order, made by itself; each only once."""

    @functools.cache
    def draw(order: Order) -> np.ndarray:
        prompt, seed, steps = order
        return generate(runtime, [prompt], [seed], steps)[0]

    return draw


class Request:
    """One image whose steps are run by whoever comes by, as in the service."""

    def __init__(self, runtime: OnnxRuntime, order: Order) -> None:
        self.prompt, self.seed, self.steps = order
        self.runtime, self.spec = runtime, runtime.bundle.spec
        self.conditioning = runtime.encode([self.prompt])
        self.step, self.x, self.D = 0, None, None

    @property
    def level(self) -> float:
        return self.spec.levels[self.steps][self.step]

    def input(self) -> Floats:
        shape = self.spec.latent_shape(self.spec.default_size)
        return noisy_input(self.spec, self.steps, self.step, self.seed, self.x, self.D, shape)


def advance(runtime: OnnxRuntime, requests: list[Request]) -> None:
    """One batch in which every image is at a step of its own."""
    x_BCHW = np.stack([request.input() for request in requests])
    t_B = np.array([request.level for request in requests], np.float32)
    names = requests[0].conditioning
    conditioning = {name: np.concatenate([r.conditioning[name] for r in requests]) for name in names}
    D_BCHW = clean_estimate(x_BCHW, t_B, runtime.velocity(x_BCHW, t_B, conditioning))
    for request, x, D in zip(requests, x_BCHW, D_BCHW):
        request.x, request.D, request.step = x, D, request.step + 1


@FEW
@given(st.lists(orders, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_mix_of_steps_in_any_order_gives_the_pictures_made_alone(
    runtime: OnnxRuntime, alone: Callable[[Order], np.ndarray], mix: list[Order], chance: object
) -> None:
    requests = [Request(runtime, order) for order in mix]
    while waiting := [request for request in requests if request.step < request.steps]:
        chance.shuffle(waiting)  # type: ignore[attr-defined]
        advance(runtime, waiting[: chance.randint(1, len(waiting))])  # type: ignore[attr-defined]
    pictures = runtime.decode(np.stack([request.D for request in requests]))
    for picture, order in zip(pictures, mix, strict=True):
        assert np.array_equal(picture, alone(order))


@FEW
@given(st.lists(orders, min_size=2, max_size=5), st.sampled_from([1, 2, 4]))
def test_a_batch_gives_the_pictures_made_alone(
    runtime: OnnxRuntime, alone: Callable[[Order], np.ndarray], mix: list[Order], steps: int
) -> None:
    together = generate(runtime, [prompt for prompt, _, _ in mix], [seed for _, seed, _ in mix], steps)
    for picture, (prompt, seed, _) in zip(together, mix, strict=True):
        assert np.array_equal(picture, alone((prompt, seed, steps)))


def test_threads_with_different_work_do_not_disturb_each_other(
    runtime: OnnxRuntime, alone: Callable[[Order], np.ndarray]
) -> None:
    """Every thread starts at once and asks for something else."""
    work = [(prompt, seed, steps) for prompt in PROMPTS[:3] for seed in (0, 1) for steps in (1, 2, 4)]
    expected = [alone(order) for order in work]
    barrier = threading.Barrier(len(work))

    def draw(order: Order) -> np.ndarray:
        prompt, seed, steps = order
        barrier.wait(30)
        return generate(runtime, [prompt], [seed], steps)[0]

    with ThreadPoolExecutor(len(work)) as pool:
        drawn = list(pool.map(draw, work))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, expected, strict=True))


def test_two_runtimes_of_one_bundle_agree(bundle: Bundle, alone: Callable[[Order], np.ndarray]) -> None:
    another = load_runtime(bundle, threads=1)
    order = (PROMPTS[0], 1, 4)
    assert np.array_equal(generate(another, [order[0]], [order[1]], order[2])[0], alone(order))


def test_each_of_prompt_seed_and_steps_matters(alone: Callable[[Order], np.ndarray]) -> None:
    base = (PROMPTS[0], 0, 4)
    for other in ((PROMPTS[2], 0, 4), (PROMPTS[0], 1, 4), (PROMPTS[0], 0, 2)):
        assert not np.array_equal(alone(base), alone(other)), other


def test_case_and_spaces_around_a_prompt_do_not_matter(runtime: OnnxRuntime) -> None:
    """SANA lower-cases and strips; the student's spec says so and the runtime does it."""
    plain, shouted = generate(runtime, ["a red circle", "  A RED Circle\n"], [3, 3], 2)
    assert np.array_equal(plain, shouted)


def test_an_error_in_one_call_leaves_the_runtime_usable(
    runtime: OnnxRuntime, alone: Callable[[Order], np.ndarray]
) -> None:
    with pytest.raises(Exception, match=r"."):
        runtime.velocity(np.zeros((1, 3, 8, 8), np.float32), np.ones(1, np.float32), runtime.encode(["a"]))
    with pytest.raises(EngineError):
        generate(runtime, ["a"], [MAX_SEED + 1], 1)
    order = (PROMPTS[0], 0, 1)
    assert np.array_equal(generate(runtime, [order[0]], [order[1]], order[2])[0], alone(order))
