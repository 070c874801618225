"""The server under load, over real sockets: deadlines, open step counts, clients that leave, caches."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
import pytest

from engines.runtime.sampler import generate
from service.settings import Settings

from .fake_runtime import FakeRuntime, make_bundle
from .running import Running, run_server, wait_until
from .test_generations import first_image, pixels

ROUTE = "/v1/images/generations"


def one_at_a_time(call_seconds: float) -> FakeRuntime:
    return FakeRuntime(make_bundle((1,), ((64, 64),)), call_seconds=call_seconds)


def leave_while_waiting(running: Running, **body: object) -> socket.socket:
    """Sends a request and returns its connection, to be closed."""
    address = urlsplit(running.url)
    content = json.dumps({"prompt": "left behind", **body}).encode()
    connection = socket.create_connection((address.hostname, address.port), 10)
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def test_a_deadline_is_kept_or_refused_at_once(settings: Settings) -> None:
    with run_server(settings, {"slow": one_at_a_time(0.05)}) as slow:
        assert slow.generate(deadline_ms=20_000).status_code == 200
        started = time.perf_counter()
        refused = slow.generate(deadline_ms=150)
        assert time.perf_counter() - started < 0.1
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "deadline_unreachable")
        assert refused.headers["x-should-retry"] == "false"
        assert "retry-after" not in refused.headers
        assert slow.metric("fewstep_requests_total", outcome="rejected") == 1


def test_a_promise_that_could_not_be_kept_is_told_and_its_work_given_up(settings: Settings) -> None:
    runtime = one_at_a_time(0.01)
    with run_server(settings, {"slow": runtime}) as slow:
        runtime.gate.clear()
        late = slow.generate(deadline_ms=600)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert late.headers["x-should-retry"] == "false"
        runtime.gate.set()
        wait_until(lambda: slow.metric("fewstep_inflight_images") == 0)
        assert slow.metric("fewstep_cancelled_images_total") == 1
        assert slow.metric("fewstep_requests_total", outcome="expired") == 1
        assert slow.generate().status_code == 200


@pytest.mark.slow
def test_the_official_clients_patience_is_a_deadline(settings: Settings) -> None:
    with run_server(settings, {"slow": one_at_a_time(0.2)}) as slow:
        client = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0, timeout=0.5)
        started = time.perf_counter()
        with pytest.raises(openai.RateLimitError, match="idle server"):
            client.images.generate(prompt="a")
        assert time.perf_counter() - started < 0.4
        assert client.with_options(timeout=30).images.generate(prompt="a").data


def test_the_urgent_go_first(settings: Settings) -> None:
    runtime = one_at_a_time(0.02)
    with run_server(settings, {"slow": runtime}) as slow, ThreadPoolExecutor(4) as pool:
        runtime.gate.clear()
        first = pool.submit(slow.generate, n=10, num_inference_steps=1)
        wait_until(lambda: slow.metric("fewstep_inflight_images") == 10)
        urgent = pool.submit(slow.generate, deadline_ms=20_000, num_inference_steps=1)
        wait_until(lambda: slow.metric("fewstep_inflight_images") == 11)
        runtime.gate.set()
        assert urgent.result().status_code == 200
        assert not first.done()
        assert first.result().status_code == 200


def test_a_flood_of_one_user_does_not_hold_up_another(settings: Settings) -> None:
    runtime = one_at_a_time(0.02)
    with run_server(settings, {"slow": runtime}) as slow, ThreadPoolExecutor(4) as pool:
        runtime.gate.clear()
        flood = [pool.submit(slow.generate, n=10, num_inference_steps=1, user="flood") for _ in range(3)]
        wait_until(lambda: slow.metric("fewstep_inflight_images") == 30)
        other = pool.submit(slow.generate, num_inference_steps=1, user="other")
        wait_until(lambda: slow.metric("fewstep_inflight_images") == 31)
        runtime.gate.set()
        assert other.result().status_code == 200
        assert sum(future.done() for future in flood) <= 1
        assert [future.result().status_code for future in flood] == [200] * 3


def test_quality_auto_gives_steps_up_under_load_and_says_so(settings: Settings) -> None:
    runtime = one_at_a_time(0.05)
    with run_server(settings, {"slow": runtime}) as slow, ThreadPoolExecutor(12) as pool:
        assert slow.generate(quality="auto").json()["num_inference_steps"] == 4
        tight = slow.generate(quality="auto", deadline_ms=290).json()  # four steps need 300
        assert (tight["num_inference_steps"], tight["quality"]) in [(2, "medium"), (1, "low")]
        runtime.gate.clear()
        busy = [pool.submit(slow.generate, seed=seed) for seed in range(8)]
        wait_until(lambda: slow.metric("fewstep_inflight_images") == 8)
        hurried = pool.submit(slow.generate, quality="auto")
        fixed = pool.submit(slow.generate, quality="high")
        default = pool.submit(slow.generate)
        wait_until(lambda: slow.metric("fewstep_inflight_images") == 11)
        runtime.gate.set()
        answer = hurried.result().json()
        assert (answer["num_inference_steps"], answer["quality"]) == (1, "low")
        assert fixed.result().json()["num_inference_steps"] == 4
        assert default.result().json()["num_inference_steps"] == 4
        assert slow.metric("fewstep_reduced_images_total") == 2
        assert all(future.result().status_code == 200 for future in busy)


def test_who_leaves_frees_the_queue_and_harms_nobody(settings: Settings) -> None:
    runtime = FakeRuntime(make_bundle((1, 2, 4), ((64, 64),)), call_seconds=0.01)
    with run_server(settings, {"fake": runtime}) as running, ThreadPoolExecutor(4) as pool:
        runtime.gate.clear()
        staying = [pool.submit(running.generate, prompt=f"stays {seed}", seed=seed) for seed in range(2)]
        wait_until(lambda: running.metric("fewstep_inflight_images") == 2)
        leaving = [leave_while_waiting(running, n=10) for _ in range(3)]
        wait_until(lambda: running.metric("fewstep_inflight_images") == 32)
        for connection in leaving:
            connection.close()
        # Those that wait are gone while the engine is still busy with its batch.
        wait_until(lambda: running.metric("fewstep_inflight_images") < 16)
        runtime.gate.set()
        for seed, answer in enumerate(staying):
            (expected,) = generate(runtime, [f"stays {seed}"], [seed], 4)
            np.testing.assert_array_equal(pixels(first_image(answer.result())), expected)
        wait_until(lambda: running.metric("fewstep_inflight_images") == 0)
        assert running.metric("fewstep_requests_total", outcome="cancelled") == 3
        assert running.metric("fewstep_cancelled_images_total") == 30
        assert running.metric("fewstep_queue_depth") == 0


def test_a_prompt_is_encoded_once(settings: Settings) -> None:
    runtime = FakeRuntime()
    with run_server(settings, {"fake": runtime}) as running, ThreadPoolExecutor(16) as pool:
        runtime.calls.clear()
        answers = list(pool.map(lambda seed: running.generate(prompt="same", seed=seed), range(16)))
        assert [answer.status_code for answer in answers] == [200] * 16
        assert runtime.batches("encode") == [1]
        assert running.metric("fewstep_embedding_cache_misses_total") == 1
        assert running.metric("fewstep_embedding_cache_hits_total") == 15
        assert running.generate(prompt="other").status_code == 200
        assert runtime.batches("encode") == [1, 1]


def test_without_an_embedding_cache_every_request_encodes(settings: Settings) -> None:
    runtime = FakeRuntime()
    off = settings.model_copy(update={"embedding_cache_mb": 0})
    with run_server(off, {"fake": runtime}) as running:
        runtime.calls.clear()
        first, second = running.generate(seed=1), running.generate(seed=1)
        assert first.json()["data"] == second.json()["data"]
        assert runtime.batches("encode") == [1, 1]


def test_equal_requests_are_drawn_once(settings: Settings) -> None:
    runtime = FakeRuntime(call_seconds=0.02)
    on = settings.model_copy(update={"result_cache_mb": 1})
    with run_server(on, {"fake": runtime}) as running, ThreadPoolExecutor(8) as pool:
        runtime.calls.clear()
        answers = list(pool.map(lambda _: running.generate(seed=1), range(8)))
        answers.append(running.generate(seed=1))
        assert len({answer.text.split('"data"')[1] for answer in answers}) == 1
        assert len({answer.headers["etag"] for answer in answers}) == 1
        assert runtime.batches("decode") == [1]
        assert running.metric("fewstep_result_cache_hits_total") == 8
        assert running.metric("fewstep_images_total") == 1
        other = running.generate(seed=2, n=2)  # shares nothing but the model
        assert other.headers["etag"] != answers[0].headers["etag"]
        assert sum(runtime.batches("decode")) == 3
        mixed = running.generate(seed=1, n=4).json()["data"]  # 1, 2 and 3 are known
        assert mixed[0] == answers[0].json()["data"][0]
        assert sum(runtime.batches("decode")) == 4


def test_a_picture_that_others_wait_for_survives_the_one_who_asked_first(settings: Settings) -> None:
    runtime = FakeRuntime(make_bundle((1,), ((64, 64),)))
    on = settings.model_copy(update={"result_cache_mb": 1})
    with run_server(on, {"fake": runtime}) as running, ThreadPoolExecutor(1) as pool:
        runtime.gate.clear()
        first = leave_while_waiting(running, seed=5)
        wait_until(lambda: running.metric("fewstep_inflight_images") == 1)
        second = pool.submit(running.generate, prompt="left behind", seed=5)
        wait_until(lambda: running.metric("fewstep_result_cache_hits_total") == 1)
        first.close()
        wait_until(lambda: running.metric("fewstep_requests_total", outcome="cancelled") == 1)
        runtime.gate.set()
        assert second.result().status_code == 200


def test_who_has_the_pictures_is_told_so(settings: Settings) -> None:
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        first = running.generate(seed=3, n=2)
        tag = first.headers["etag"]

        def again(seed: int, tags: str) -> httpx.Response:
            body = {"prompt": "a red circle", "seed": seed, "n": 2}
            return running.client.post(ROUTE, json=body, headers={"if-none-match": tags})

        for tags in (tag, f"W/{tag}", f'"other", {tag}'):
            answer = again(3, tags)
            assert (answer.status_code, answer.json()["error"]["code"]) == (412, "not_modified")
        assert again(4, tag).status_code == 200
        assert again(3, '"other"').status_code == 200
