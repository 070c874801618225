"""The models as stock diffusers serves them, which the serving benchmark has as rows."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.peers.plain import Request
from benchmarks.peers.stock import Stock
from distill.shapes.judge import correct
from distill.shapes.scenes import all_scenes, captions


@pytest.mark.parametrize(("model", "steps"), [("teacher", 28), ("student", 4)])
def test_it_draws_what_is_asked_for_in_the_models_own_steps(model: str, steps: int) -> None:
    stock, scenes = Stock(model), all_scenes()[1][:4]
    answers = [stock(Request(prompt=caption, seed=7)) for caption in captions(scenes)]
    assert {answer["num_inference_steps"] for answer in answers} == {steps}
    files = [base64.b64decode(answer["data"][0]["b64_json"]) for answer in answers]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    assert pictures.shape == (4, 64, 64, 3)
    assert correct(pictures, scenes).mean() >= 0.75
