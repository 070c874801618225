"""Quality of a generator on the shapes world: prompt-following, judged exactly, and Fréchet distance.

A generator is any `(prompts, seeds) -> uint8 [N, 64, 64, 3]`, so teachers, students in training,
student folders and bundles are all measured by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics.frechet import Gaussian, frechet_distance
from .metrics.tables import cell, markdown, summary
from .progress import progress
from .shapes.judge import correct, read
from .shapes.render import Images, render, render_all
from .shapes.scenes import ATTRIBUTES, Scene, SceneSet, captions, parse_caption

Generator = Callable[[Sequence[str], Sequence[int]], Images]

REFERENCE_PICTURES = 4000
BATCH = 64


def evaluate(
    generator: Generator, split: str = "held-out", count: int = 256, seed: int = 0, label: str = ""
) -> dict[str, Any]:
    """All-attribute accuracy, accuracy of each attribute, Fréchet distance to fresh renders.

    The scenes depend on (split, count, seed) only, so models are compared on the same prompts; they
    start from the noise of `picture_seeds`. Accuracies are shares in 0 ... 1, the Fréchet distance is in
    squared units of the judge's features. Progress is shown under `label`, if there is one.
    """
    scenes = SceneSet(split).draw(np.random.default_rng((seed, 0xE7A1)), count)
    images = _generate(generator, scenes, seed, label)
    right = correct(images, scenes)
    return {
        "accuracy": float(right.all(axis=1).mean()),
        "attributes": dict(zip(ATTRIBUTES, right.mean(axis=0).round(4).tolist(), strict=True)),
        "frechet_distance": frechet_distance(Gaussian.of(read(images)[0]), Gaussian.of(_reference(split))),
        "images": len(scenes),
    }


def evaluate_seeds(
    generator: Generator, split: str, count: int, seeds: Sequence[int], label: str = ""
) -> dict[str, Any]:
    """`evaluate` over several seeds: mean and spread (largest minus smallest) of each figure."""
    runs = [evaluate(generator, split, count, seed, label) for seed in seeds]
    return {
        "accuracy": summary([run["accuracy"] for run in runs]),
        "frechet_distance": summary([run["frechet_distance"] for run in runs]),
        "attributes": {name: summary([run["attributes"][name] for run in runs]) for name in ATTRIBUTES},
        "images": count,
        "seeds": list(seeds),
        "split": split,
    }


def picture_seeds(seed: int, count: int) -> range:
    """The seed of each of `count` pictures of an evaluation."""
    return range(seed * 1_000_000, seed * 1_000_000 + count)


def fresh_renders(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
    """A perfect generator: it shows what the Fréchet distance is worth at a number of pictures."""
    scenes = map(parse_caption, prompts)
    return np.stack([render(scene, np.random.default_rng(seed)) for scene, seed in zip(scenes, seeds)])


def _generate(generator: Generator, scenes: Sequence[Scene], seed: int, label: str) -> Images:
    prompts, seeds, images = captions(scenes), picture_seeds(seed, len(scenes)), []
    with progress(label and f"evaluating {label}", len(prompts)) as shown:
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            images.append(generator(batch, seeds[start : start + BATCH]))
            shown.update(start + len(batch))
    return np.concatenate(images)


def markdown_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of `evaluate_seeds` results, one named row each."""
    head = ["model", "accuracy", "Fréchet distance", *(name.replace("_", " ") for name in ATTRIBUTES)]
    lines = []
    for name, row in rows.items():
        attributes = [f"{row['attributes'][a]['mean']:.3f}" for a in ATTRIBUTES]
        lines.append([name, cell(row["accuracy"], 3), cell(row["frechet_distance"], 2), *attributes])
    return markdown(head, lines)


@cache
def _reference(split: str) -> npt.NDArray[np.float64]:
    """Judge features of fresh renders of a split."""
    rng = np.random.default_rng(0xF1D)
    return read(render_all(SceneSet(split).draw(rng, REFERENCE_PICTURES), rng))[0]
