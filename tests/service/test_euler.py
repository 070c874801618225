"""Euler students in the service: each image carries its own place on the flow from step to step."""

from __future__ import annotations

import numpy as np

from engines.runtime.base import Floats
from engines.runtime.sampler import generate, noise
from service.generator import Generator
from service.image import Image
from service.metrics import Metrics
from service.settings import Settings

from .fake_runtime import FakeRuntime, make_bundle

LEVELS = {1: (1.0,), 3: (1.0, 0.75, 0.5), 4: (1.0, 0.9, 0.75, 0.5)}
"""Uneven, as of a shifted scheduler."""


def by_hand(runtime: FakeRuntime, prompt: str, seed: int, steps: int) -> Floats:
    """x <- x + (t' - t) v, the last t' = 0; latents [C, H, W]."""
    conditioning, x = runtime.encode([prompt]), noise(seed, 0, (4, 8, 8))[None]
    for t, following in zip(LEVELS[steps], (*LEVELS[steps][1:], 0.0)):
        x = x + np.float32(following - t) * runtime.velocity(x, np.array([t], np.float32), conditioning)
    return x


def test_images_of_different_step_counts_in_one_batch_are_stepped_along_the_flow() -> None:
    levels = {str(steps): row for steps, row in LEVELS.items()}
    bundle = make_bundle(sizes=((64, 64),), sampler="euler", renoise="ddim", levels=levels)
    runtime = FakeRuntime(bundle, call_seconds=0.01)
    generator = Generator("fake", runtime, Settings(max_wait_ms=20), Metrics())
    generator.warm_up()
    runtime.levels.clear()
    images = [Image(f"picture {seed}", seed, (1, 3, 4)[seed % 3], (64, 64)) for seed in range(12)]
    generator.submit(images)
    for image in images:
        assert image.file.result(timeout=10)
    assert any(len(set(levels)) > 1 for levels in runtime.levels), "steps were mixed"
    for image in images:
        assert image.pixels_HWC is not None
        (alone,) = generate(runtime, [image.prompt], [image.seed], image.steps)
        np.testing.assert_array_equal(image.pixels_HWC, alone)
        expected = runtime.decode(by_hand(runtime, image.prompt, image.seed, image.steps))[0]
        assert np.abs(image.pixels_HWC.astype(int) - expected).max() <= 1
    generator.close()
