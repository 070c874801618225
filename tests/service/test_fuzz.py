"""Whatever is sent to the server, it answers, and never with a 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.models import Models
from service.schemas import ImagesRequest
from service.settings import Settings

from .fake_runtime import FakeRuntime, make_bundle

ROUTE = "/v1/images/generations"
JSON = {"content-type": "application/json"}
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

FIELDS = sorted(ImagesRequest.model_fields)
# Magnitudes beyond what a float holds are in test_bad_requests, where a message is expected.
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
likely = {
    "prompt": st.text(min_size=1, max_size=30) | st.sampled_from(["bad-encode", "bad-denoise"]),
    "n": st.integers(-1, 12),
    "size": st.sampled_from(["auto", "64x64", "64x32", "32x64", "0x0", "x", "\uff19x\uff19"]),
    "quality": st.sampled_from(["auto", "low", "medium", "high", "standard", "hd", "ultra"]),
    "output_format": st.sampled_from(["png", "jpeg", "webp", "gif"]),
    "output_compression": st.integers(-1, 101),
    "response_format": st.sampled_from(["b64_json", "url", "file"]),
    "seed": st.integers(-1, 2**63),
    "num_inference_steps": st.integers(0, 5),
    "model": st.sampled_from(["fake", "", "gpt-image-1", "fake/fake"]),
    "stream": st.booleans(),
}


def bodies() -> st.SearchStrategy[dict[str, Any]]:
    optional = {name: field for name, field in likely.items() if name != "prompt"}
    plausible = st.fixed_dictionaries({"prompt": likely["prompt"]}, optional=optional)
    odd = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), values, max_size=4)
    return st.builds(lambda first, second: {**first, **second}, plausible, odd | st.just({}))


class Client:
    """Requests to an application in this process, models loaded."""

    def __init__(self, app: FastAPI) -> None:
        self.app, self.loop = app, asyncio.new_event_loop()
        models: Models = app.state.service.models
        self.loop.run_until_complete(self._start(models))

    async def _start(self, models: Models) -> None:
        await models.start()

    def request(self, method: str, path: str, **how: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **how)

        return self.loop.run_until_complete(send())

    def close(self) -> None:
        self.loop.run_until_complete(self.app.state.service.models.drain(1))
        self.loop.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder: Path = tmp_path_factory.mktemp("data")
    wanted = Settings(
        data_dir=folder, log_level="error", max_wait_ms=0, max_body_bytes=20_000, jobs_workers=False
    )
    running = Client(create_app(wanted, {"fake": FakeRuntime(make_bundle((1, 2, 4, 8)))}))
    yield running
    running.close()


def check(response: httpx.Response) -> None:
    """A picture, or an error in OpenAI's form."""
    assert response.headers["x-request-id"].startswith("req_")
    if response.headers["content-type"].startswith("text/event-stream"):
        assert "image_generation.completed" in response.text
        return
    body = response.json()
    if response.status_code == 200:
        assert body["data"]
        return
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["message"]
    assert len(response.content) < 2000, "an answer that repeats what it was sent"
    assert body["error"]["type"] == "invalid_request_error"
    assert 400 <= response.status_code < 500


def is_meant_to_fail(body: dict[str, Any]) -> bool:
    """The fake runtime breaks on such prompts; a model that does is a 500 by right."""
    return isinstance(body.get("prompt"), str) and "bad-" in body["prompt"]


@QUICK
@given(bodies())
def test_any_body_is_answered(client: Client, body: dict[str, Any]) -> None:
    response = client.request("POST", ROUTE, content=json.dumps(body), headers=JSON)
    if is_meant_to_fail(body) and "event: error" in response.text:
        assert "internal_error" in response.text
    elif is_meant_to_fail(body) and response.status_code == 500:
        assert response.json()["error"]["code"] == "internal_error"
    else:
        check(response)


@QUICK
@given(values)
def test_any_json_is_answered(client: Client, value: Any) -> None:
    check(client.request("POST", ROUTE, content=json.dumps(value), headers=JSON))


@QUICK
@given(st.binary(max_size=200), st.sampled_from([*JSON.values(), "text/plain", "a/b; charset=x", ""]))
def test_any_bytes_are_answered(client: Client, content: bytes, media_type: str) -> None:
    check(client.request("POST", ROUTE, content=content, headers={"content-type": media_type}))


@QUICK
@given(st.sampled_from(["prompt", "model", "size", "user"]), st.text(alphabet=st.characters(), max_size=300))
def test_any_text_in_a_field_is_answered(client: Client, field: str, text: str) -> None:
    """All of Unicode, lone surrogates too."""
    body = {"prompt": "a red circle", field: text}
    check(client.request("POST", ROUTE, content=json.dumps(body), headers=JSON))


@QUICK
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    st.sampled_from(["/v1/images/files/", "/v1/models/", "/v1/", "/"]),
    st.text(min_size=1, max_size=40),
)
def test_any_address_is_answered(client: Client, method: str, prefix: str, rest: str) -> None:
    path = prefix + "".join(f"%{byte:02X}" for byte in rest.encode("utf-8", "surrogatepass"))
    response = client.request(method, path)
    if response.status_code not in (200, 307):
        check(response)


@QUICK
@given(
    st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, 2**63 - n))),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["64x64", "64x32"]),
    st.sampled_from(["png", "webp", "jpeg"]),
)
def test_whatever_is_right_is_drawn(
    client: Client, count_and_seed: tuple[int, int], steps: int, size: str, format: str
) -> None:
    count, seed = count_and_seed
    asked = {"prompt": "a", "n": count, "seed": seed, "size": size, "output_format": format}
    response = client.request("POST", ROUTE, json={**asked, "num_inference_steps": steps})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [entry["seed"] for entry in answer["data"]] == list(range(seed, seed + count))
    assert (answer["num_inference_steps"], answer["size"], answer["output_format"]) == (steps, size, format)


def test_after_all_that_nothing_is_left_inside(client: Client) -> None:
    """Fails when an error path forgets an image: room in the queue would leak away."""
    text = client.request("GET", "/metrics").text
    assert 'fewstep_inflight_images{model="fake"} 0.0' in text
    assert client.request("POST", ROUTE, json={"prompt": "a"}).status_code == 200
