"""Many requests at once: shared batches, nothing lost, and a door that closes when full."""

from __future__ import annotations

import asyncio
import base64
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engines.runtime.sampler import generate
from service.app import create_app
from service.errors import ServiceError
from service.generator import Generator
from service.image import Image
from service.metrics import Metrics
from service.settings import Settings

from .fake_runtime import FakeRuntime, make_bundle
from .running import Running, run_server, wait_until

ONE_SIZE = make_bundle(sizes=((64, 64),))


def at_once(running: Running, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: running.generate(**body), bodies))


def test_64_requests_share_batches_and_none_is_lost(settings: Settings) -> None:
    # Slow enough that the requests pile up on a busy machine, too, whose clients send them one after another.
    runtime = FakeRuntime(ONE_SIZE, call_seconds=0.05, image_seconds=0.0005)
    with run_server(settings, {"fake": runtime}) as running:
        bodies = [
            {"prompt": f"picture {i}", "seed": i, "num_inference_steps": (1, 2, 4)[i % 3]} for i in range(64)
        ]
        answers = at_once(running, bodies)
        assert [answer.status_code for answer in answers] == [200] * 64
        assert [answer.json()["data"][0]["seed"] for answer in answers] == list(range(64))
        # Decoding keeps up, so that it takes images as they finish and its batches are smaller.
        for stage, at_least in (("encode", 4), ("denoise", 4), ("decode", 1.5)):
            images = running.metric("fewstep_batch_size_sum", stage=stage)
            assert images / running.metric("fewstep_batch_size_count", stage=stage) > at_least
        assert running.metric("fewstep_batch_size_sum", stage="file") == 64
        assert running.metric("fewstep_images_total") == 64
        assert running.metric("fewstep_inflight_images") == 0
        assert running.metric("fewstep_queue_depth") == 0


def test_images_at_different_steps_share_a_batch(settings: Settings) -> None:
    runtime = FakeRuntime(ONE_SIZE, call_seconds=0.01)
    with run_server(settings, {"fake": runtime}) as running:
        runtime.levels.clear()
        at_once(running, [{"num_inference_steps": (1, 2, 4)[i % 3], "seed": i} for i in range(24)])
        assert any(len(set(levels)) > 1 for levels in runtime.levels)


@pytest.mark.parametrize(("seconds", "threads"), [(0.0, {"encode"}), (0.02, {"denoise"})])
def test_a_lone_picture_wakes_no_other_thread_unless_its_steps_are_long(
    settings: Settings, seconds: float, threads: set[str]
) -> None:
    """Whoever comes meanwhile would wait for the encoder until a long step has ended."""
    runtime, seen = FakeRuntime(ONE_SIZE, call_seconds=seconds), set[str]()
    with run_server(settings, {"fake": runtime}) as running:
        velocity = runtime.velocity

        def watched(*arguments: Any) -> Any:
            seen.add(threading.current_thread().name)
            return velocity(*arguments)

        runtime.velocity = watched  # type: ignore[method-assign]
        for seed in range(3):
            assert running.generate(seed=seed).status_code == 200
        assert seen == threads
        assert running.metric("fewstep_inflight_images") == 0
        seen.clear()
        at_once(running, [{"seed": seed} for seed in range(16)])
        assert "denoise" in seen


def test_a_bad_image_fails_alone(settings: Settings) -> None:
    runtime = FakeRuntime(ONE_SIZE, call_seconds=0.01)
    with run_server(settings, {"fake": runtime}) as running:
        prompts = ["good", "bad-encode", "good too", "bad-denoise"] * 4
        answers = at_once(running, [{"prompt": prompt, "seed": 1} for prompt in prompts])
        for prompt, answer in zip(prompts, answers):
            assert answer.status_code == (500 if "bad" in prompt else 200)
        assert answers[1].json()["error"]["type"] == "server_error"
        expected = {prompt: generate(runtime, [prompt], [1], 4)[0] for prompt in ("good", "good too")}
        for prompt in expected:
            pictures = {a.json()["data"][0]["b64_json"] for p, a in zip(prompts, answers) if p == prompt}
            assert len(pictures) == 1
        assert running.metric("fewstep_requests_total", outcome="error") == 8
        assert running.metric("fewstep_requests_total", outcome="ok") == 8
        assert running.metric("fewstep_inflight_images") == 0


def test_full_queue_is_429_with_a_computed_retry_after(settings: Settings) -> None:
    runtime = FakeRuntime(ONE_SIZE, call_seconds=0.01)
    small = settings.model_copy(update={"queue_limit": 8})
    with run_server(small, {"fake": runtime}) as running:
        runtime.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(running.generate, n=6)
            wait_until(lambda: running.metric("fewstep_inflight_images") == 6)
            refused = running.generate(n=3)
            assert running.metric("fewstep_inflight_images") == 6
            runtime.gate.set()
            assert first.result().status_code == 200
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert 0 < int(refused.headers["retry-after-ms"]) <= 1000 * int(refused.headers["retry-after"])
        assert running.metric("fewstep_requests_total", outcome="rejected") == 1
        assert running.generate(n=8).status_code == 200


@pytest.mark.slow
def test_those_who_are_refused_together_are_not_told_to_come_back_together(settings: Settings) -> None:
    runtime = FakeRuntime(ONE_SIZE, call_seconds=0.2)
    small = settings.model_copy(update={"queue_limit": 4})
    with run_server(small, {"fake": runtime}) as running:
        at_once(running, [{"num_inference_steps": 1}] * 4)
        # What was fast before the queue was ever full says nothing of the pace under load.
        runtime.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(running.generate, n=4)
            wait_until(lambda: running.metric("fewstep_inflight_images") == 4)
            waits = [int(running.generate(n=2).headers["retry-after-ms"]) for _ in range(4)]
            runtime.gate.set()
            assert first.result().status_code == 200
        slots = np.diff(waits)
        assert (slots > 0).all(), waits
        assert waits[0] > 0.5 * slots.max(), waits


def test_prompts_of_one_request_are_encoded_once(settings: Settings) -> None:
    runtime = FakeRuntime(ONE_SIZE)
    with run_server(settings, {"fake": runtime}) as running:
        runtime.calls.clear()
        assert running.generate(n=8).status_code == 200
        assert runtime.batches("encode") == [1]


def test_two_models_have_their_own_queues(settings: Settings) -> None:
    stuck, free = FakeRuntime(ONE_SIZE), FakeRuntime(ONE_SIZE)
    with run_server(settings, {"stuck": stuck, "free": free}) as running:
        stuck.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(running.generate, model="stuck")
            wait_until(lambda: running.metric("fewstep_inflight_images", model="stuck") == 1)
            assert running.generate(model="free").status_code == 200
            stuck.gate.set()
            assert waiting.result().status_code == 200


def test_the_event_loop_is_never_blocked(settings: Settings) -> None:
    """While pictures are drawn and written, a task that wakes every 5 ms is not held up as often as the engine is
    called; a machine that stalls may hold it up now and then."""

    async def measure() -> tuple[list[int], int, int]:
        runtime = FakeRuntime(ONE_SIZE)
        app = create_app(settings, {"slow": runtime})
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://t") as c,
        ):
            while (await c.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.02)
            runtime.call_seconds = 0.15
            body = {"prompt": "a", "n": 4, "num_inference_steps": 2}
            requests = asyncio.gather(*(c.post("/v1/images/generations", json=body) for _ in range(4)))
            late, calls = 0, len(runtime.calls)
            while not requests.done():
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                late += time.perf_counter() - before > 0.12
            return [answer.status_code for answer in await requests], late, len(runtime.calls) - calls

    statuses, late, calls = asyncio.run(measure())
    assert statuses == [200] * 4
    assert late < calls / 2


requests = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 4]), st.sampled_from(["fine", "bad-denoise"])),
    min_size=1,
    max_size=12,
)


@hypothesis_settings(max_examples=15)
@given(requests)
def test_every_admitted_image_becomes_its_own_picture(asked: list[tuple[int, int, str]]) -> None:
    runtime = FakeRuntime(ONE_SIZE)
    generator = Generator("fake", runtime, Settings(max_wait_ms=0), Metrics())
    generator.warm_up()
    batches = [
        [Image(f"{prompt} {number}", number + index, steps, (64, 64)) for index in range(count)]
        for number, (count, steps, prompt) in enumerate(asked)
    ]
    threads = [threading.Thread(target=generator.submit, args=(images,)) for images in batches]
    for thread in threads:
        thread.start()
    images = [image for batch in batches for image in batch]
    for image in images:
        error = image.file.exception(timeout=10)
        assert isinstance(error, ValueError) if "bad" in image.prompt else error is None
    wait_until(lambda: generator.inflight == 0)
    good = [image for image in images if "bad" not in image.prompt]
    for image in good[:3]:
        assert image.pixels_HWC is not None
        (expected,) = generate(runtime, [image.prompt], [image.seed], image.steps)
        np.testing.assert_array_equal(image.pixels_HWC, expected)
    generator.close()


def test_answers_are_files(settings: Settings) -> None:
    with run_server(settings, {"fake": FakeRuntime(ONE_SIZE)}) as running:
        content = base64.b64decode(running.generate().json()["data"][0]["b64_json"])
        assert content.startswith(b"\x89PNG")


def test_admitting_never_waits_for_the_phases() -> None:
    """Whoever is admitted is let in at once, however far the phases behind have backed up."""
    runtime = FakeRuntime(make_bundle((3, 8), ((64, 64),)))
    generator = Generator("fake", runtime, Settings(queue_limit=40, max_wait_ms=0), Metrics())
    generator.warm_up()
    runtime.call_seconds = 0.1
    longest, seed = 0.0, itertools.count()
    images: list[Image] = []
    while len(images) < 80:
        image = Image("a", next(seed), 1, (64, 64))
        started = time.perf_counter()
        try:
            generator.submit([image])
        except ServiceError:
            time.sleep(0.002)
            continue
        longest = max(longest, time.perf_counter() - started)
        images.append(image)
    assert longest < 0.05
    assert all(image.file.exception(timeout=10) is None for image in images)
    generator.close()
