"""What is put on a bundle's quality card while it is exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distill.errors import DistillError
from distill.metrics import clip_score
from engines.bundle import SHIPPED, Bundle
from engines.runtime import generate
from engines.runtime.onnx import OnnxRuntime
from fewstep.grading import CLIP_IMAGES, judge_of


@pytest.fixture(scope="module")
def runtime() -> OnnxRuntime:
    return OnnxRuntime(Bundle.load(SHIPPED / "shapes-sana-sid"), threads=1)


def test_nothing_is_measured_unasked() -> None:
    assert judge_of(None, None, ["a star"]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((1, None, ()), "--judge 1: expected at least 2 pictures"),
        ((None, "a-clip", ()), "--clip needs prompts to draw"),
        ((None, "/no/such/clip", ("a star",)), "no/such/clip"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_export(
    options: tuple[int | None, str | None, Sequence[str]], message: str
) -> None:
    with pytest.raises(DistillError, match=message):
        judge_of(*options)


def test_the_shapes_judge_reads_each_step_count(runtime: OnnxRuntime) -> None:
    judge = judge_of(8, None, ())
    assert judge is not None
    asked: list[int] = []

    def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int) -> np.ndarray:
        asked.append(steps)
        return generate(runtime, prompts, seeds, steps)

    found = judge(draw, [1, 4])
    assert list(found) == ["1", "4"]
    assert set(asked) == {1, 4}
    assert found["4"]["images"] == 8
    assert found["4"]["accuracy"] >= 0.75  # measured over 500: 99.6 %

    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    assert judge(lambda prompts, seeds, steps: noise[: len(prompts)], [4])["4"]["accuracy"] == 0


def test_a_clip_scores_the_first_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SimpleNamespace(name="tiny", digest=lambda: "sha256:1")
    scorer = SimpleNamespace(encoder=encoder, cosines=lambda pictures, prompts: np.full(len(pictures), 0.25))
    monkeypatch.setattr(clip_score, "load_scorer", lambda source: scorer)
    judge = judge_of(None, "clip", ["a star"] * 100)
    assert judge is not None
    found = judge(lambda prompts, seeds, steps: np.zeros((len(prompts), 8, 8, 3), np.uint8), [2])["2"]
    assert found["clip_images"] == CLIP_IMAGES
    assert (found["clip_cosine"], found["clip_score"]) == (0.25, 25.0)
    assert found["clip"] == {"name": "tiny", "digest": "sha256:1"}


def test_a_missing_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="nothing"):
        judge_of(None, str(tmp_path / "nothing"), ["a star"])
