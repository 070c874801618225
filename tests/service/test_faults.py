"""Engines that die, stall or lie; clients that leave: every image gets one picture or one clear error."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engines.runtime.base import Conditioning, Floats, Images
from engines.runtime.sampler import generate
from service.errors import ServiceError
from service.generator import Generator
from service.image import CancelledError, Image
from service.metrics import Metrics
from service.settings import Settings

from .fake_runtime import FakeRuntime, make_bundle
from .running import run_server, wait_until
from .test_generations import first_image, pixels

ONE_SIZE = make_bundle((1, 2, 4), ((64, 64),))


class MortalRuntime(FakeRuntime):
    """Fails at everything from the moment that it is killed, as an engine whose context is lost."""

    def __init__(self, **options: float) -> None:
        super().__init__(ONE_SIZE, **options)
        self.dead = threading.Event()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self._live()
        return super().encode(prompts)

    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        self._live()
        velocity = super().velocity(x_BCHW, t_B, conditioning)
        self._live()
        return velocity

    def decode(self, x0_BCHW: Floats) -> Images:
        self._live()
        return super().decode(x0_BCHW)

    def _live(self) -> None:
        if self.dead.is_set():
            raise RuntimeError("the engine is dead")


class Power:
    """Loads runtimes, and kills the one that runs."""

    def __init__(self, **options: float) -> None:
        self.loaded: list[MortalRuntime] = []
        self.options, self.broken = options, False

    def load(self) -> MortalRuntime:
        if self.broken:
            raise RuntimeError("no memory")
        self.loaded.append(MortalRuntime(**self.options))
        return self.loaded[-1]

    def kill(self) -> None:
        self.loaded[-1].dead.set()


def opened(power: Power, **changes: object) -> tuple[Generator, Metrics]:
    metrics = Metrics()
    settings = Settings(max_wait_ms=0).model_copy(update=changes)
    generator = Generator("fake", power.load, settings, metrics)
    generator.warm_up()
    return generator, metrics


def drawn_right(image: Image) -> bool:
    (expected,) = generate(FakeRuntime(ONE_SIZE), [image.prompt], [image.seed], image.steps)
    return image.pixels_HWC is not None and np.array_equal(image.pixels_HWC, expected)


events = st.lists(
    st.tuples(
        st.sampled_from(["request", "request", "request", "bad", "leave", "kill", "pause"]),
        st.integers(1, 5),
        st.sampled_from([1, 2, 4]),
        st.sampled_from(["a", "b"]),
    ),
    min_size=1,
    max_size=25,
)


@hypothesis_settings(max_examples=25)
@given(events, st.randoms(use_true_random=False))
def test_every_image_gets_exactly_one_picture_or_one_error_and_its_own(
    happenings: list[tuple[str, int, int, str]], shuffle: random.Random
) -> None:
    """Requests of mixed steps and clients, bad ones, clients that leave, and engines that are killed."""
    power = Power()
    generator, metrics = opened(power)
    asked: list[list[Image]] = []
    outcomes: dict[int, int] = {}

    def count(image: Image) -> None:
        outcomes[id(image)] = outcomes.get(id(image), 0) + 1

    for number, (event, images, steps, client) in enumerate(happenings):
        if event in ("request", "bad"):
            prompt = f"bad-denoise {number}" if event == "bad" else f"fine {number % 3}"
            new = [Image(prompt, number + index, steps, (64, 64), client=client) for index in range(images)]
            for image in new:
                image.file.add_done_callback(lambda _, image=image: count(image))
            generator.submit(new)
            asked.append(new)
        elif event == "leave" and asked:
            generator.cancel([image for image in shuffle.choice(asked) if image.wanted])
        elif event == "kill":
            power.kill()
        else:
            time.sleep(0.002)
    for image in (image for images in asked for image in images):
        error = image.file.exception(timeout=20)
        if error is None:
            assert drawn_right(image)
        elif isinstance(error, CancelledError):
            assert image.cancelled
        else:
            assert "bad" in image.prompt or str(error) == "the engine is dead", error
    wait_until(lambda: generator.inflight == 0)
    assert set(outcomes.values()) <= {1}
    assert len(outcomes) == sum(map(len, asked))
    assert not generator._fair._served
    generator.close()


def test_an_engine_that_dies_is_restarted_and_nobody_notices(settings: Settings) -> None:
    power = Power(call_seconds=0.005)
    generator, metrics = opened(power)
    images = [Image(f"picture {seed}", seed, 4, (64, 64)) for seed in range(12)]
    generator.submit(images)
    time.sleep(0.02)
    power.kill()
    for image in images:
        assert image.file.exception(timeout=20) is None
        assert drawn_right(image)
    assert len(power.loaded) == 2
    assert metrics.registry.get_sample_value("fewstep_engine_restarts_total", {"model": "fake"}) == 1
    generator.close()


def test_an_engine_that_cannot_be_restarted_is_a_clear_error_and_not_ready() -> None:
    power = Power()
    generator, _ = opened(power, stall_seconds=5.0, canary_seconds=0.05)
    power.broken = True
    power.kill()
    image = Image("a", 1, 1, (64, 64))
    generator.submit([image])
    error = image.file.exception(timeout=20)
    assert isinstance(error, ServiceError)
    assert (error.status, error.code) == (503, "engine_down")
    wait_until(lambda: not generator.watchdog.healthy)
    power.broken = False
    wait_until(lambda: generator.watchdog.healthy)
    image = Image("a", 1, 1, (64, 64))
    generator.submit([image])
    assert image.file.result(20)
    generator.close()


def test_readiness_follows_an_engine_that_stalls_and_recovers(settings: Settings) -> None:
    runtime = FakeRuntime(ONE_SIZE)
    runtimes = {"fake": runtime}
    quick = settings.model_copy(update={"stall_seconds": 0.3})
    with run_server(quick, runtimes) as running:
        runtime.gate.clear()
        fresh = FakeRuntime(ONE_SIZE)
        fresh.gate.clear()
        runtimes["fake"] = fresh
        answers: list[bytes] = []
        asking = threading.Thread(target=lambda: answers.append(first_image(running.generate(seed=3))))
        asking.start()
        wait_until(lambda: running.client.get("/health/ready").status_code == 503)
        assert running.client.get("/health/ready").json() == {
            "status": "stalled",
            "models": {"fake": "stalled"},
        }
        assert running.client.get("/health/live").status_code == 200
        fresh.gate.set()  # the engine that took its place draws
        wait_until(lambda: running.client.get("/health/ready").status_code == 200)
        asking.join(10)
        (expected,) = generate(fresh, ["a red circle"], [3], 4)
        np.testing.assert_array_equal(pixels(answers[0]), expected)
        runtime.gate.set()
        assert running.metric("fewstep_engine_restarts_total") >= 1


def test_an_engine_that_draws_something_else_is_not_healthy() -> None:
    class Drifting(FakeRuntime):
        offset = 0

        def decode(self, x0_BCHW: Floats) -> Images:
            images: Images = super().decode(x0_BCHW) // 2 + self.offset
            return images

    runtime = Drifting(ONE_SIZE)
    generator = Generator("fake", runtime, Settings(), Metrics())
    generator.warm_up()
    assert generator.engine.draws()
    runtime.offset = 20
    assert not generator.engine.draws()
    generator.watchdog._turn(False)
    generator.watchdog.tick()
    assert not generator.watchdog.healthy
    runtime.offset = 0
    generator.watchdog.tick()
    assert generator.watchdog.healthy
    generator.close()


@pytest.mark.slow
def test_a_thousand_requests_with_departures_bad_bodies_and_kills(settings: Settings) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from .test_under_load import leave_while_waiting

    power = Power(call_seconds=0.001)
    runtimes = {"fake": power.load()}
    large = settings.model_copy(update={"queue_limit": 1000})
    with run_server(large, runtimes) as running, ThreadPoolExecutor(16) as pool:
        models = running.server.config.app.state.service.models  # type: ignore[union-attr]
        models.generators["fake"].engine._load = power.load

        def one(number: int) -> int:
            if number % 97 == 0:
                power.kill()
            if number % 11 == 0:
                leave_while_waiting(running, n=3).close()
                return 200
            if number % 13 == 0:
                return running.generate(prompt="").status_code
            answer = running.generate(
                prompt=f"p {number % 7}", seed=number, num_inference_steps=(1, 2, 4)[number % 3]
            )
            if answer.status_code == 200 and number % 10 == 1:
                (expected,) = generate(
                    FakeRuntime(ONE_SIZE), [f"p {number % 7}"], [number], (1, 2, 4)[number % 3]
                )
                assert np.array_equal(pixels(first_image(answer)), expected)
            return answer.status_code

        statuses = list(pool.map(one, range(1000)))
        wait_until(lambda: running.metric("fewstep_inflight_images") == 0, 30)
        assert statuses.count(400) == sum(number % 13 == 0 and number % 11 != 0 for number in range(1000))
        assert set(statuses) <= {200, 400, 500}
        assert statuses.count(500) < 20
        assert running.metric("fewstep_queue_depth") == 0
