"""What a bundle's pictures are worth, measured while it is exported: the shapes judge, or a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError

if TYPE_CHECKING:
    from engines.export import Draw, Judge

CLIP_IMAGES = 64


def judge_of(judge: int | None, clip: str | None, prompts: Sequence[str]) -> Judge | None:
    """What measures, by the options `--judge IMAGES`, `--clip CLIP` and `--prompts FILE`; None without them.

    Raises:
        DistillError: a CLIP without prompts, a CLIP that cannot be loaded, fewer than two pictures to judge.
    """
    if judge is not None and judge < 2:
        raise DistillError(f"--judge {judge}: expected at least 2 pictures")
    if clip and not prompts:
        raise DistillError("--clip needs prompts to draw (--prompts FILE)")
    grades = [partial(_by_shapes, judge)] if judge else []
    grades += [_by_clip(clip, prompts[:CLIP_IMAGES])] if clip else []
    if not grades:
        return None

    def measured(draw: Draw, step_counts: Sequence[int]) -> dict[str, Any]:
        """Step count -> figures."""
        return {
            str(steps): {name: value for grade in grades for name, value in grade(draw, steps).items()}
            for steps in step_counts
        }

    return measured


def _by_shapes(count: int, draw: Draw, steps: int) -> dict[str, Any]:
    """Accuracy and Fréchet distance over `count` held-out prompts, as `fewstep evaluate` has them."""
    from distill.evaluation import evaluate

    found = evaluate(lambda prompts, seeds: draw(prompts, seeds, steps), count=count)
    return {name: found[name] for name in ("accuracy", "frechet_distance", "images")}


def _by_clip(clip: str, prompts: Sequence[str]) -> partial[dict[str, Any]]:
    from distill.metrics.clip_score import load_scorer

    return partial(_clip_score, load_scorer(clip), prompts)


def _clip_score(scorer: Any, prompts: Sequence[str], draw: Draw, steps: int) -> dict[str, Any]:
    """Mean cosine of pictures and prompts, seeds 0, 1, ...; 100 times it; of which CLIP."""
    from PIL import Image

    pictures = [Image.fromarray(array) for array in draw(prompts, range(len(prompts)), steps)]
    cosine = float(scorer.cosines(pictures, prompts).mean())
    clip = {"name": scorer.encoder.name, "digest": scorer.encoder.digest()}
    return {"clip_cosine": cosine, "clip_score": 100 * cosine, "clip": clip, "clip_images": len(prompts)}
