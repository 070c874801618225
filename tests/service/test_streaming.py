"""Streams as the official client reads them, and requests that are sent again."""

from __future__ import annotations

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from engines.runtime.sampler import generate, sample
from service.errors import ServiceError
from service.provenance import read_provenance
from service.settings import Settings

from .fake_runtime import FakeRuntime, make_bundle
from .running import Running, run_server, wait_until
from .test_generations import first_image, pixels
from .test_under_load import leave_while_waiting

ROUTE = "/v1/images/generations"


@pytest.fixture
def client(shared: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="unused", max_retries=0)


def streamed(client: openai.OpenAI, **fields: Any) -> list[Any]:
    return list(client.images.generate(prompt="a red circle", model="fake", stream=True, **fields))


def picture(event: Any) -> np.ndarray:
    return pixels(base64.b64decode(event.b64_json))


def estimates(seed: int, steps: int) -> list[np.ndarray]:
    """What the fake runtime estimates after each step: its sampler stopped early."""
    runtime = FakeRuntime()
    found, velocity = [], runtime.velocity

    def watched(x: Any, t: Any, conditioning: Any) -> Any:
        v = velocity(x, t, conditioning)
        found.append(runtime.decode(x - t[:, None, None, None] * v)[0])
        return v

    runtime.velocity = watched  # type: ignore[method-assign]
    sample(runtime, runtime.bundle.spec, ["a red circle"], [seed], steps, (64, 64))
    return found


@pytest.mark.parametrize(("partial_images", "indices"), [(0, []), (1, [0]), (2, [0, 1]), (3, [0, 1, 2])])
def test_every_estimate_is_the_picture_that_the_step_stands_for(
    client: openai.OpenAI, partial_images: int, indices: list[int]
) -> None:
    *partial, final = streamed(client, partial_images=partial_images, quality="high", extra_body={"seed": 5})
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial)
    # Those that a fast engine overtakes are left out; none comes twice or out of order.
    shown = [event.partial_image_index for event in partial]
    assert shown == sorted(set(shown))
    assert set(shown) <= set(indices)
    for event in partial:
        np.testing.assert_array_equal(picture(event), estimates(5, 4)[event.partial_image_index])
    assert final.type == "image_generation.completed"
    assert (final.size, final.quality, final.output_format, final.background) == (
        "64x64",
        "high",
        "png",
        "opaque",
    )
    assert final.usage.output_tokens == 64
    assert (final.seed, final.num_inference_steps) == (5, 4)
    assert list(final.timing) == ["queue", "encode", "denoise", "decode", "file"]
    assert final.timing["denoise"] > 0
    np.testing.assert_array_equal(picture(final), generate(FakeRuntime(), ["a red circle"], [5], 4)[0])


def test_estimates_come_before_the_picture_is_done(settings: Settings) -> None:
    runtime = FakeRuntime(make_bundle((1,), ((64, 64),)), call_seconds=0.1)
    with run_server(settings, {"fake": runtime}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        events = streamed(client, partial_images=3, quality="high")
        assert [getattr(event, "partial_image_index", None) for event in events][:2] == [0, 1]
        assert events[-1].type == "image_generation.completed"


def test_each_of_several_pictures_comes_when_it_is_ready(client: openai.OpenAI) -> None:
    events = streamed(client, n=4, extra_body={"seed": 20})
    assert sorted((event.index, event.seed) for event in events) == [(i, 20 + i) for i in range(4)]
    for event in events:
        expected = generate(FakeRuntime(), ["a red circle"], [event.seed], 4)[0]
        np.testing.assert_array_equal(picture(event), expected)


def test_only_the_picture_itself_says_how_it_was_made(client: openai.OpenAI) -> None:
    """An estimate would not be drawn again from its prompt, seed and steps."""
    *partial, final = streamed(client, partial_images=3, quality="high")
    files = [io.BytesIO(base64.b64decode(event.b64_json)) for event in (*partial, final)]
    assert read_provenance(files.pop()).prompt == "a red circle"
    for file in files:
        with pytest.raises(ServiceError, match="does not say how it was made"):
            read_provenance(file)


def test_one_step_has_no_estimates(client: openai.OpenAI) -> None:
    (only,) = streamed(client, partial_images=3, quality="low")
    assert only.type == "image_generation.completed"


def test_an_error_within_a_stream_raises_at_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="failed to process"):
        list(client.images.generate(prompt="bad-denoise", model="fake", stream=True))


def test_refusals_come_before_the_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        streamed(client, n=11)


def test_a_stream_whose_time_is_over_ends_with_an_error(settings: Settings) -> None:
    runtime = FakeRuntime()
    with run_server(settings, {"fake": runtime}) as running:
        runtime.gate.clear()
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        with pytest.raises(openai.APIError, match="not ready in time"):
            streamed(client, extra_body={"deadline_ms": 500})
        runtime.gate.set()
        wait_until(lambda: running.metric("fewstep_inflight_images") == 0)
        wait_until(lambda: running.metric("fewstep_requests_total", outcome="expired") == 1)
        assert running.metric("fewstep_requests_total", outcome="ok") == 0


def test_a_reader_who_leaves_a_stream_gives_up_the_rest(settings: Settings) -> None:
    runtime = FakeRuntime(make_bundle((1,), ((64, 64),)), call_seconds=0.02)
    with run_server(settings, {"fake": runtime}) as running:
        body = {"prompt": "a", "n": 10, "stream": True}
        with httpx.stream("POST", running.url + ROUTE, json=body, timeout=10) as response:
            next(response.iter_lines())
        wait_until(lambda: running.metric("fewstep_inflight_images") == 0)
        assert running.metric("fewstep_images_total") < 9
        assert running.metric("fewstep_cancelled_images_total") >= 1
        assert running.metric("fewstep_requests_total", outcome="cancelled") == 1
        assert running.metric("fewstep_request_duration_seconds_count") == 0
        with httpx.stream("POST", running.url + ROUTE, json={**body, "n": 1}, timeout=10) as response:
            assert "image_generation.completed" in response.read().decode()
        wait_until(lambda: running.metric("fewstep_requests_total", outcome="ok", route=ROUTE) == 1)
        assert running.metric("fewstep_request_duration_seconds_count") == 1


def send(running: Running, key: str, **body: object) -> httpx.Response:
    fields = {"prompt": "a red circle", **body}
    return running.client.post(ROUTE, json=fields, headers={"Idempotency-Key": key})


def test_a_request_that_is_sent_again_has_the_same_answer(shared: Running) -> None:
    before = shared.metric("fewstep_images_total", model="fake")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: send(shared, "order 1"), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1  # the random seed too
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 3
    assert shared.metric("fewstep_images_total", model="fake") == before + 1
    assert first_image(send(shared, "order 2")) != first_image(answers[0])


def test_a_key_belongs_to_its_request(shared: Running) -> None:
    assert send(shared, "order 3").status_code == 200
    other = send(shared, "order 3", n=2)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert send(shared, "").status_code == 400
    assert send(shared, "k" * 256).status_code == 400


def test_what_failed_may_be_tried_again_under_its_key(settings: Settings) -> None:
    runtime = FakeRuntime()
    with run_server(settings, {"fake": runtime}) as running:
        runtime.gate.clear()
        assert send(running, "k", deadline_ms=300).status_code == 504
        runtime.gate.set()
        assert send(running, "k", deadline_ms=20_000).status_code == 200


def test_who_waits_for_a_request_whose_sender_left_takes_it_over(settings: Settings) -> None:
    runtime = FakeRuntime()
    with run_server(settings, {"fake": runtime}) as running:
        runtime.gate.clear()
        answers: list[httpx.Response] = []
        first = httpx.Client(base_url=running.url, timeout=0.3)
        with pytest.raises(httpx.ReadTimeout):
            first.post(ROUTE, json={"prompt": "a red circle"}, headers={"Idempotency-Key": "k"})
        second = threading.Thread(target=lambda: answers.append(send(running, "k")))
        second.start()
        first.close()
        runtime.gate.set()
        second.join(10)
        assert answers[0].status_code == 200
        leave_while_waiting(running).close()
