"""What a good request gets."""

from __future__ import annotations

import base64
import io
import os
import re
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image as PillowImage

from engines.runtime.sampler import generate
from service.pictures import FileStore

from .fake_runtime import FakeRuntime
from .running import Running


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(PillowImage.open(io.BytesIO(content)).convert("RGB"))


def first_image(response: httpx.Response) -> bytes:
    assert response.status_code == 200, response.text
    return base64.b64decode(response.json()["data"][0]["b64_json"])


@pytest.fixture
def client(shared: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="unused", max_retries=0)


def test_official_client_generates(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt="a red circle", model="fake", n=3, size="auto", quality="medium", extra_body={"seed": 7}
    )
    assert answer.data is not None
    assert [entry.model_extra["seed"] for entry in answer.data if entry.model_extra] == [7, 8, 9]
    assert all(pixels(base64.b64decode(entry.b64_json or "")).shape == (64, 64, 3) for entry in answer.data)
    assert (answer.output_format, answer.quality, answer.size, answer.background) == (
        "png",
        "medium",
        "64x64",
        "opaque",
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.input_tokens_details.text_tokens == 3
    assert answer.usage.output_tokens == 3 * 64
    assert abs(answer.created - time.time()) < 60


def test_official_client_reads_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a", extra_body={"guidance": 3})
    assert (caught.value.param, caught.value.code) == ("guidance", "unknown_parameter")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a", model="gpt-image-1")


def test_official_client_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "other"]
    card = client.models.retrieve("fake")
    extra = card.model_extra or {}
    assert (extra["steps"], extra["sizes"], extra["batch_sizes"]) == (
        [1, 2, 4],
        ["64x64", "64x32"],
        [1, 2, 4, 8],
    )
    assert extra["digests"]["bundle"].startswith("sha256:")
    assert extra["parity"]["tolerance"] == {"denoiser": 1e-3}
    assert (extra["backend"], extra["quality"]) == ("fake", {"accuracy": 1.0})


def test_picture_is_what_the_sampler_draws(shared: Running) -> None:
    served = pixels(first_image(shared.generate(seed=5, num_inference_steps=4)))
    (expected,) = generate(FakeRuntime(), ["a red circle"], [5], 4)
    np.testing.assert_array_equal(served, expected)


def test_same_seed_same_picture_in_any_batch(shared: Running) -> None:
    many = shared.generate(seed=10, n=10).json()["data"]
    for index in (0, 3, 9):
        alone = first_image(shared.generate(seed=10 + index))
        assert base64.b64decode(many[index]["b64_json"]) == alone
    assert len({entry["b64_json"] for entry in many}) == 10


def test_without_a_seed_one_is_drawn_and_can_be_repeated(shared: Running) -> None:
    drawn = shared.generate(n=2).json()["data"]
    assert drawn[1]["seed"] == drawn[0]["seed"] + 1
    again = shared.generate(seed=drawn[1]["seed"]).json()["data"][0]
    assert again == drawn[1]
    assert shared.generate().json()["data"][0]["seed"] != drawn[0]["seed"]


def test_largest_seed(shared: Running) -> None:
    assert shared.generate(seed=2**63 - 1).json()["data"][0]["seed"] == 2**63 - 1


@pytest.mark.parametrize(
    ("body", "steps", "quality"),
    [
        ({}, 4, "high"),
        ({"quality": None}, 4, "high"),
        ({"quality": "auto"}, 4, "high"),
        ({"quality": "low"}, 1, "low"),
        ({"quality": "medium"}, 2, "medium"),
        ({"quality": "standard"}, 2, "medium"),
        ({"quality": "high"}, 4, "high"),
        ({"quality": "hd"}, 4, "high"),
        ({"num_inference_steps": 2}, 2, "medium"),
        ({"quality": "high", "num_inference_steps": 1}, 1, "low"),
    ],
)
def test_quality_is_a_step_count(shared: Running, body: dict[str, object], steps: int, quality: str) -> None:
    before = shared.metric("fewstep_images_total", model="fake", steps=str(steps))
    answer = shared.generate(**body).json()
    assert (answer["num_inference_steps"], answer["quality"]) == (steps, quality)
    assert shared.metric("fewstep_images_total", model="fake", steps=str(steps)) == before + 1


@pytest.mark.parametrize(("format", "pillow"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
@pytest.mark.parametrize("size", ["64x64", "64x32"])
def test_formats_and_sizes(shared: Running, format: str, pillow: str, size: str) -> None:
    response = shared.generate(output_format=format, size=size)
    picture = PillowImage.open(io.BytesIO(first_image(response)))
    picture.load()
    assert (picture.format, f"{picture.width}x{picture.height}") == (pillow, size)
    assert (response.json()["output_format"], response.json()["size"]) == (format, size)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_compression_makes_files_smaller(shared: Running, format: str) -> None:
    sizes = [
        len(first_image(shared.generate(seed=1, output_format=format, output_compression=value)))
        for value in (0, 50, 100)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_urls_lead_to_the_files(shared: Running) -> None:
    answer = shared.generate(n=3, seed=1, response_format="url", output_format="webp").json()["data"]
    urls = [entry["url"] for entry in answer]
    assert len(set(urls)) == 3
    for entry in answer:
        assert re.fullmatch(rf"{shared.url}/v1/images/files/[\w-]{{32}}\.webp", entry["url"])
        assert "b64_json" not in entry
        file = httpx.get(entry["url"])
        assert file.headers["content-type"] == "image/webp"
        same = shared.generate(seed=entry["seed"], output_format="webp")
        assert file.content == first_image(same)


@pytest.mark.parametrize("name", ["x.png", "a" * 32 + ".png", "a" * 32 + ".gif", "..%2Fsecret.png"])
def test_other_file_names_lead_nowhere(shared: Running, name: str) -> None:
    response = shared.client.get(f"/v1/images/files/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_files_live_for_an_hour(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    old, fresh = store.put(b"old", "png"), store.put(b"fresh", "png")
    os.utime(tmp_path / old, (time.time() - 3601,) * 2)
    assert store.find(fresh).read_bytes() == b"fresh"
    with pytest.raises(Exception, match="hour is over"):
        store.find(old)
    FileStore(tmp_path).put(b"another", "png")
    assert not (tmp_path / old).exists()


def test_headers_tell_id_and_timings(shared: Running) -> None:
    started = time.perf_counter()
    response = shared.generate()
    elapsed = 1000 * (time.perf_counter() - started)
    timings = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    assert list(timings) == ["queue", "encode", "denoise", "decode", "file"]
    assert 0 < sum(map(float, timings.values())) <= elapsed
    ids = {
        shared.client.get(path).headers["x-request-id"]
        for path in ("/", "/v1/models", "/nowhere", "/metrics")
    }
    assert len(ids | {response.headers["x-request-id"]}) == 5


def test_accepted_without_effect(shared: Running) -> None:
    response = shared.generate(
        style="vivid", moderation="low", user="someone", background="opaque", stream=False, partial_images=0
    )
    assert response.status_code == 200


def test_prompt_may_have_lines_and_any_script(shared: Running) -> None:
    assert shared.generate(prompt="ein Kreis\n\tüben 星の下 🎨").status_code == 200
