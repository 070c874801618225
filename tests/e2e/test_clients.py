"""Clients of the real server: formats, connections, mixes of steps, and the README's own lines."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from .conftest import Server

ROUTE = "/v1/images/generations"
PROMPT = "a red circle on a white background"
README = (Path(__file__).parents[2] / "README.md").read_text()


def opened(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def post(server: Server, **body: Any) -> httpx.Response:
    return httpx.post(server.url + ROUTE, json={"prompt": PROMPT, **body}, timeout=60)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("way", ["b64_json", "url"])
def test_every_format_by_both_ways_through_the_official_client(server: Server, format: Any, way: Any) -> None:
    answer = server.client.images.generate(
        prompt=PROMPT, output_format=format, response_format=way, extra_body={"seed": 3}
    )
    assert answer.data is not None
    (entry,) = answer.data
    if way == "url":
        assert entry.b64_json is None
        response = httpx.get(entry.url or "")
        assert response.headers["content-type"] == f"image/{format}"
        content = response.content
    else:
        assert entry.url is None
        content = base64.b64decode(entry.b64_json or "")
    assert (opened(content).format or "").lower() == format
    assert opened(content).size == (64, 64)


def test_lossy_formats_show_the_same_picture(server: Server) -> None:
    png, jpeg, webp = (
        np.asarray(opened(base64.b64decode(
            post(server, seed=3, output_format=format).json()["data"][0]["b64_json"]
        )).convert("RGB"), float)
        for format in ("png", "jpeg", "webp")
    )  # fmt: skip
    assert np.abs(png - jpeg).mean() < 4
    assert np.abs(png - webp).mean() < 4


def test_ten_pictures_of_one_request(server: Server) -> None:
    answer = post(server, n=10, seed=100).json()
    assert [entry["seed"] for entry in answer["data"]] == list(range(100, 110))
    assert len({entry["b64_json"] for entry in answer["data"]}) == 10
    assert answer["usage"]["output_tokens"] == 10 * 64


def test_eleven_pictures_are_one_too_many(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.images.generate(prompt=PROMPT, n=11)
    assert (caught.value.param, caught.value.code) == ("n", "invalid_value")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "image/png", "nonsense"]
)
def test_wrong_content_types_are_told_the_right_one(server: Server, media_type: str) -> None:
    body = json.dumps({"prompt": PROMPT})
    response = httpx.post(server.url + ROUTE, content=body, headers={"content-type": media_type})
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


def test_forms_are_refused_too(server: Server) -> None:
    for how in ({"data": {"prompt": PROMPT}}, {"files": {"prompt": PROMPT.encode()}}):
        response = httpx.post(server.url + ROUTE, **how)  # type: ignore[arg-type]
        assert response.status_code == 400
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def exchange(connection: socket.socket, request: str) -> tuple[str, bytes]:
    """Status line and body of one answer over a connection that stays open."""
    connection.sendall(request.encode())
    stream = connection.makefile("rb")
    status, length = stream.readline().decode().strip(), 0
    while line := stream.readline().strip():
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, stream.read(length)


def test_one_connection_serves_many_requests_good_and_bad(server: Server) -> None:
    """An error answer keeps the connection, and nothing of it runs into the next answer."""
    host = urlsplit(server.url).netloc
    bodies = ['{"prompt": "a"}', "{", '{"prompt": ""}', '{"prompt": "a", "n": 2}', "[]", '{"prompt": "b"}']
    with socket.create_connection(
        (urlsplit(server.url).hostname, urlsplit(server.url).port), 30
    ) as connection:
        statuses = []
        for body in bodies:
            head = f"POST {ROUTE} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            status, content = exchange(connection, f"{head}Content-Length: {len(body)}\r\n\r\n{body}")
            json.loads(content)
            statuses.append(status.split()[1])
    assert statuses == ["200", "400", "400", "200", "400", "200"]


def test_kept_connections_are_not_slow(server: Server) -> None:
    """Nagle's algorithm would make every answer 40 ms late."""
    with httpx.Client(base_url=server.url) as client:
        client.get("/health/live")
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            client.get("/health/live")
            seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[len(seconds) // 2] < 0.03


def test_a_client_that_leaves_does_no_harm(server: Server) -> None:
    before = post(server, seed=8).json()["data"][0]["b64_json"]
    body = json.dumps({"prompt": PROMPT, "n": 10})
    for kept in (len(body), len(body) // 2):  # gone while waiting, and gone while still sending
        with socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port)) as leaving:
            head = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body[:kept]}".encode())
            time.sleep(0.02)
    assert post(server, seed=8).json()["data"][0]["b64_json"] == before
    deadline = time.monotonic() + 20
    while server.metrics()['fewstep_inflight_images{model="shapes-sana-sid"}'] > 0:
        assert time.monotonic() < deadline, "images of clients that left are never finished"
        time.sleep(0.05)


def test_mixed_step_counts_at_once_are_counted_and_right(server: Server) -> None:
    alone = {steps: post(server, seed=4, num_inference_steps=steps).json()["data"] for steps in (1, 2, 4)}
    before = server.metrics()
    mix = [(1, 2, 4)[i % 3] for i in range(24)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda steps: post(server, seed=4, num_inference_steps=steps).json(), mix))
    after = server.metrics()
    for steps, answer in zip(mix, answers, strict=True):
        assert answer["num_inference_steps"] == steps
        assert answer["data"] == alone[steps]
    for steps in (1, 2, 4):
        name = f'fewstep_images_total{{model="shapes-sana-sid",steps="{steps}"}}'
        assert after[name] - before[name] == 8


def test_every_answer_says_where_its_time_went(server: Server) -> None:
    began = time.perf_counter()
    response = post(server, n=4)
    elapsed = 1000 * (time.perf_counter() - began)
    timings = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    assert list(timings) == ["queue", "encode", "denoise", "decode", "file"]
    assert 0 < sum(map(float, timings.values())) < elapsed
    assert float(timings["denoise"]) > 0


def test_ids_are_unique_on_good_and_bad_answers(server: Server) -> None:
    answers = [post(server, n=number) for number in (1, 0, 1, 99)] + [httpx.get(server.url + "/nowhere")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", python_blocks())
def test_python_in_the_readme_runs(server: Server, block: str) -> None:
    names: dict[str, Any] = {}
    exec(re.sub(r"http://[\d.]+:\d+", server.url, block), names)
    (entry,) = names["image"].data
    assert opened(base64.b64decode(entry.b64_json)).size == (64, 64)
    assert entry.seed == 7


def test_the_same_seed_in_the_readme_and_in_a_plain_request(server: Server) -> None:
    names: dict[str, Any] = {}
    exec(re.sub(r"http://[\d.]+:\d+", server.url, python_blocks()[0]), names)
    plain = post(server, seed=7, quality="high").json()["data"][0]
    assert names["image"].data[0].b64_json == plain["b64_json"]


def test_the_pages_and_the_description_are_served(server: Server) -> None:
    for path, text in (("/", "fewstep"), ("/docs", "openapi.json"), ("/openapi.json", ROUTE)):
        response = httpx.get(server.url + path)
        assert response.status_code == 200
        assert text in response.text
