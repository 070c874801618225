"""The loop closed: prompts are sent, a job distils, its gate holds, the served model answers with the new
digest, and a rollback brings the old pixels back. The real server, the real command, the official client."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from distill.shapes.scenes import SceneSet, captions
from engines.bundle import SHIPPED, Bundle
from service.jobs.gate import read_figures

from .conftest import Server, start_server, stop_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAME, PROMPT = "shapes-sana-sid", "a red circle on a white background"
RECIPE = {
    "iterations": 16,
    "batch": 16,
    "guidance": {"fake_train": 1, "fake_outer": 1, "fake_inner": 1, "teacher": 2},
    "optimizer": {"lr_generator": 1e-4, "lr_fake": 1e-4},
    "ema": 0.8,
    "quality": None,
    "samples_every": 8,
    "checkpoint_every": 8,
}
GATE = {"steps": [1], "images": 96, "at_least": {"psnr_db": 40, "accuracy": 0.3}}


def submit(client: OpenAI, file: str, **more: Any) -> str:
    job = client.fine_tuning.jobs.create(
        model="shapes-sana",
        training_file=file,
        method={"type": "sid", "sid": RECIPE},  # type: ignore[typeddict-item]
        seed=1,
        extra_body=more,
    )
    return job.id


def pixels(client: OpenAI) -> np.ndarray[Any, Any]:
    answer = client.images.generate(
        model=NAME,
        prompt=PROMPT,
        quality="high",
        response_format="b64_json",
        extra_body={"seed": 7},
    )
    assert answer.data is not None
    content = base64.b64decode(answer.data[0].b64_json or "")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def watch(server: Server, job: str) -> list[str]:
    """The messages of all events until the job's end."""
    url = f"{server.url}/v1/fine_tuning/jobs/{job}/events"
    messages = []
    with httpx.stream("GET", url, params={"stream": "true"}, timeout=600) as stream:
        for line in stream.iter_lines():
            if line == "data: [DONE]":
                break
            if line.startswith("data: "):
                messages.append(json.loads(line[6:]).get("message", ""))
    return messages


def start_distance(teacher: str) -> float:
    """Of the student before it is distilled."""
    command = [sys.executable, "-m", "fewstep", "evaluate", teacher, "--few-step", "--json"]
    wanted = ["--steps", "1", "--images", "96", "--seeds", "0"]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=True)
    return read_figures(json.loads(done.stdout))[1]["frechet_distance"]


def test_distil_gate_publish_serve_roll_back(tmp_path: Path) -> None:
    settings = ("--jobs-threads", "1", "--jobs-nice", "0")
    server = start_server(tmp_path / "data", "--model", NAME, *settings)
    try:
        client = server.client
        before = pixels(client)
        scenes = SceneSet("train").draw(np.random.default_rng(0), 400)
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in captions(scenes))
        file = client.files.create(file=("prompts.jsonl", lines.encode()), purpose="fine-tune")

        job = submit(client, file.id, gate=GATE, publish={"model": NAME, "canary": 0, "canary_seconds": 0})
        messages = watch(server, job)
        ended = client.fine_tuning.jobs.retrieve(job)
        result = (ended.model_extra or {})["result"]
        assert (ended.status, result["published"]) == ("succeeded", True), (ended, messages)
        assert "distill starts" in messages
        checkpoints = client.fine_tuning.jobs.checkpoints.list(job).data
        assert checkpoints[0].step_number == 16

        figures = read_figures(json.loads((tmp_path / f"data/jobs/{job}/evaluate.out").read_text()))
        assert figures[1]["frechet_distance"] < start_distance("shapes-sana")

        digest = result["bundle"]["bundle_digest"]
        assert httpx.get(f"{server.url}/v1/models/{NAME}").json()["digests"]["bundle"] == digest
        assert not np.array_equal(pixels(client), before)
        versions = httpx.get(f"{server.url}/v1/models/{NAME}/versions").json()["data"]
        assert [(one["digest"], one["state"]) for one in versions] == [
            (digest, "serving"),
            (Bundle.load(SHIPPED / NAME).digest, "previous"),
        ]
        assert versions[0]["gate"]["job"] == job

        httpx.post(f"{server.url}/v1/models/{NAME}/rollback", timeout=60).raise_for_status()
        assert np.array_equal(pixels(client), before)
    finally:
        assert stop_server(server) == 0
