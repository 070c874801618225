"""The shipped model as users meet it: the official client, the judge, many requests at once."""

from __future__ import annotations

import base64
import io
import json
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from openai import BadRequestError, NotFoundError
from PIL import Image

from distill.pictures import to_images
from distill.pipeline import load_pipeline
from distill.sampler import sample_student
from distill.shapes.judge import correct
from distill.shapes.scenes import SceneSet, parse_caption

from .conftest import Server, start_server, stop_server

CAPTION = "a red circle on a white background"


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def picture(server: Server, prompt: str = CAPTION, **body: object) -> np.ndarray:
    response = server.client.images.generate(
        model="shapes-sana-sid", prompt=prompt, response_format="b64_json", extra_body=body
    )
    assert response.data
    assert response.data[0].b64_json
    return decoded(response.data[0].b64_json)


def test_the_official_client_gets_what_it_asked_for(server: Server) -> None:
    image = picture(server, seed=1)
    assert image.shape == (64, 64, 3)
    assert correct(image[None], [parse_caption(CAPTION)]).all()


@pytest.mark.parametrize(("quality", "steps"), [("low", 1), ("medium", 2), ("high", 4)])
def test_quality_is_a_step_count(server: Server, quality: str, steps: int) -> None:
    by_name = picture(server, quality=quality, seed=5)
    assert np.array_equal(by_name, picture(server, num_inference_steps=steps, seed=5))


def test_64_requests_at_once_are_batched_and_right(server: Server) -> None:
    scenes = SceneSet("held-out").draw(np.random.default_rng(3), 64)
    before = server.metrics()
    with ThreadPoolExecutor(64) as pool:
        images = list(
            pool.map(lambda item: picture(server, item[1].caption, seed=item[0]), enumerate(scenes))
        )
    after = server.metrics()

    def growth(name: str) -> float:
        return after[name] - before.get(name, 0)

    batches = [name for name in after if name.startswith("fewstep_batch_size_count") and "denoise" in name]
    sizes = [name.replace("_count", "_sum") for name in batches]
    mean = sum(map(growth, sizes)) / sum(map(growth, batches))
    assert mean > 4
    right = correct(np.stack(images), scenes).all(axis=1)
    assert right.sum() >= 60, f"{right.sum()} of 64 pictures are right"


def test_the_same_seed_gives_the_same_picture_in_any_company(server: Server) -> None:
    alone = picture(server, seed=77)
    with ThreadPoolExecutor(16) as pool:
        crowd = [pool.submit(picture, server, "a blue star on a pink background", seed=i) for i in range(15)]
        among = pool.submit(picture, server, seed=77).result()
        assert len({image.result().tobytes() for image in crowd}) > 1
    assert np.array_equal(alone, among)


def test_n_images_use_successive_seeds(server: Server) -> None:
    body = {"prompt": CAPTION, "n": 3, "seed": 40, "response_format": "b64_json"}
    data = httpx.post(server.url + "/v1/images/generations", json=body).json()["data"]
    assert [item["seed"] for item in data] == [40, 41, 42]
    assert np.array_equal(decoded(data[2]["b64_json"]), picture(server, seed=42))


def test_the_server_draws_what_pytorch_draws(server: Server) -> None:
    student = load_pipeline("shapes-sana-sid")
    expected = to_images(sample_student(student, [CAPTION], [9], 4))[0].astype(int)
    assert np.abs(picture(server, seed=9, num_inference_steps=4).astype(int) - expected).max() <= 2


def test_the_model_card_has_its_proofs(server: Server) -> None:
    model = httpx.get(server.url + "/v1/models/shapes-sana-sid").json()
    text = json.dumps(model)
    assert model["object"] == "model"
    assert "sha256:" in text
    assert "psnr_db" in text
    assert "accuracy" in text
    assert [m.id for m in server.client.models.list()] == ["shapes-sana-sid"]


def test_wrong_requests_raise_the_clients_own_errors(server: Server) -> None:
    with pytest.raises(NotFoundError, match="shapes-sana-sid"):
        server.client.images.generate(model="dall-e-9", prompt="x")
    with pytest.raises(BadRequestError, match="n"):
        server.client.images.generate(prompt="x", n=11)
    with pytest.raises(BadRequestError, match="stepz"):
        server.client.images.generate(prompt="x", extra_body={"stepz": 3})


def test_the_printed_curl_works(server: Server) -> None:
    command = next(line for line in server.lines if "curl" in line)
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    url = json.loads(done.stdout)["data"][0]["url"]
    assert Image.open(io.BytesIO(httpx.get(url).content)).size == (64, 64)


def test_it_starts_fast_and_stays_small(server: Server) -> None:
    announced = next(line for line in server.lines if "ready in" in line)
    assert float(announced.split("ready in ")[1].split(" s")[0]) < 3
    assert psutil.Process(server.process.pid).memory_info().rss < 600 * 2**20


def test_a_port_in_use_is_said_in_one_line(server: Server, tmp_path: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    command = ["-m", "fewstep", "serve", "--port", port, "--data-dir", str(tmp_path)]
    import sys

    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert port in done.stderr


def test_a_stopped_server_finishes_what_it_has(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    with ThreadPoolExecutor(32) as pool:
        waiting = [pool.submit(picture, server, seed=seed) for seed in range(32)]
        waiting[0].result()
        assert stop_server(server) == 0
        outcomes = [future.exception() for future in waiting]
    assert outcomes.count(None) >= 1
    for error in filter(None, outcomes):
        assert "503" in str(error) or "Connection" in str(error)


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    import shutil
    import sys

    from engines.store import find_bundle

    bundle = tmp_path / "bundle"
    shutil.copytree(find_bundle("shapes-sana-sid"), bundle)
    content = bytearray((bundle / "denoiser.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "denoiser.onnx").write_bytes(content)
    command = ["-m", "fewstep", "serve", "--port", "0", "--model", f"broken={bundle}"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert "denoiser.onnx does not match its digest" in done.stderr
