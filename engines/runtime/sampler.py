"""The few-step sampler over NumPy arrays.

At level t the network sees x = (1 - t) D + t e and gives v; D = x - t v is the next estimate of the
clean latents, and the last one is decoded. Levels fall from 1, where D does not matter. With the
noise that x implies (`ddim`) this is an Euler step of the flow: (1 - t') D + t' e = x + (t' - t) v.

Noise is a function of (seed, step) alone, so a picture depends on neither its neighbours in the
batch nor the order in which steps of different requests are run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from ..bundle import Bundle, SamplerSpec, Size
from ..errors import EngineError
from .base import Conditioning, Floats, Images, Networks, Runtime, Stepping

MAX_SEED = 2**63 - 1
Shape = tuple[int, ...]
Draw = Callable[[Sequence[str], Sequence[int], Size], Images]


def noise(seed: int, step: int, shape: Shape) -> Floats:
    """Standard normal noise of step `step` of the image with `seed`.

    Raises:
        EngineError: the seed is outside 0 ... 2^63 - 1.
    """
    if not 0 <= seed <= MAX_SEED:
        raise EngineError(f"seed {seed}: expected 0 ... {MAX_SEED}")
    stream = np.random.Philox(key=np.array([seed, step], np.uint64))
    return np.random.Generator(stream).standard_normal(shape, np.float32)


def step_levels(spec: SamplerSpec, steps: int) -> tuple[float, ...]:
    """Noise levels of a supported step count, falling from 1.

    Raises:
        EngineError: the student was not made for `steps`; the message lists what it was made for.
    """
    if steps not in spec.levels:
        supported = ", ".join(str(count) for count in sorted(spec.levels))
        raise EngineError(f"{steps} steps: this model supports {supported}")
    return spec.levels[steps]


def noisy_input(
    spec: SamplerSpec,
    steps: int,
    index: int,
    seed: int,
    x_prev: Floats | None,
    D_prev: Floats | None,
    shape: Shape,
) -> Floats:
    """What the network sees at step `index` (from 0) of `steps`, for one image.

    Args:
        spec: The sampler's settings.
        steps: A supported step count.
        index: Which step.
        seed: Of this image.
        x_prev: The network's input at the step before [C, H, W]; None at step 0.
        D_prev: The clean estimate of the step before [C, H, W]; None at step 0.
        shape: (C, H, W).
    """
    levels = step_levels(spec, steps)
    if x_prev is None or D_prev is None:
        return noise(seed, 0, shape)
    t = levels[index]
    return (1 - t) * D_prev + t * renoise(spec, seed, index, x_prev, D_prev, levels[index - 1])


def renoise(
    spec: SamplerSpec, seed: int, index: int, x_prev: Floats, D_prev: Floats, t_prev: float
) -> Floats:
    """The noise of a later step: new, the first one again, or the one that `x_prev` implies."""
    if spec.renoise == "ddim":
        e = x_prev - (1 - t_prev) * D_prev
        e /= t_prev
        return e
    return noise(seed, 0 if spec.renoise == "fixed" else index, x_prev.shape)


def clean_estimate(x_BCHW: Floats, t_B: Floats, v_BCHW: Floats) -> Floats:
    """D = x - t v, with one level per image."""
    return x_BCHW - t_B[:, None, None, None] * v_BCHW


@dataclass(frozen=True)
class Pending:
    """An image before step `index` of `steps`.

    Attributes:
        seed: Of this image.
        steps: A supported step count.
        index: From 0.
        x_prev: The network's input at the step before [C, H, W]; None at step 0.
        D_prev: The clean estimate of the step before [C, H, W]; None at step 0.
    """

    seed: int
    steps: int
    index: int
    x_prev: Floats | None
    D_prev: Floats | None


def advance(
    networks: Networks, spec: SamplerSpec, images: Sequence[Pending], shape: Shape, conditioning: Conditioning
) -> tuple[Floats, Floats]:
    """The next step of each image, whichever it is: the network's inputs and the clean estimates.

    Latents of `Stepping` networks stay on their device.
    """
    t_B = np.array([step_levels(spec, image.steps)[image.index] for image in images], np.float32)
    if _is_stepping(networks):
        sources, levels = zip(*[_source(spec, image, shape) for image in images])
        zero = np.zeros(shape, np.float32)
        cleans = [zero if image.D_prev is None else image.D_prev for image in images]
        return networks.step(list(sources), np.array(levels, np.float32), cleans, t_B, conditioning)
    x_BCHW = np.stack(
        [noisy_input(spec, one.steps, one.index, one.seed, one.x_prev, one.D_prev, shape) for one in images]
    )
    return x_BCHW, clean_estimate(x_BCHW, t_B, networks.velocity(x_BCHW, t_B, conditioning))


def _is_stepping(networks: Networks) -> TypeGuard[Stepping]:
    # What `isinstance` asks, which takes a protocol longer than the rest of a step's arithmetic.
    return hasattr(networks, "step")


def _source(spec: SamplerSpec, image: Pending, shape: Shape) -> tuple[Floats, float]:
    """What the noise of the next step comes from, and its level: noise itself is at level 1."""
    if image.x_prev is not None and spec.renoise == "ddim":
        return image.x_prev, step_levels(spec, image.steps)[image.index - 1]
    return noise(image.seed, 0 if spec.renoise == "fixed" else image.index, shape), 1.0


def sample(
    networks: Networks,
    spec: SamplerSpec,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    size: Size,
) -> Floats:
    """Clean latents [B, C, H, W] of one batch."""
    shape = spec.latent_shape(size)
    conditioning = networks.encode(prompts)
    x: Iterable[Floats | None] = [None] * len(seeds)
    D: Iterable[Floats | None] = x
    for index in range(len(step_levels(spec, steps))):
        images = [Pending(seed, steps, index, x_i, D_i) for seed, x_i, D_i in zip(seeds, x, D)]
        x_BCHW, D_BCHW = advance(networks, spec, images, shape, conditioning)
        x, D = x_BCHW, D_BCHW
    return D_BCHW


def generate(
    runtime: Runtime, prompts: Sequence[str], seeds: Sequence[int], steps: int, size: Size | None = None
) -> Images:
    """Pictures, uint8 [B, H, W, 3], one for each prompt and seed.

    Raises:
        EngineError: unsupported step count or size, a bad seed, or lists of different lengths.
    """
    spec = runtime.bundle.spec

    def draw(prompts: Sequence[str], seeds: Sequence[int], size: Size) -> Images:
        return runtime.decode(sample(runtime, spec, prompts, seeds, steps, size))

    return in_batches(runtime.bundle, draw, prompts, seeds, steps, size)


def in_batches(
    bundle: Bundle, draw: Draw, prompts: Sequence[str], seeds: Sequence[int], steps: int, size: Size | None
) -> Images:
    """What `draw` makes of batches that the bundle was certified for.

    Raises:
        EngineError: as `generate`.
    """
    manifest = bundle.manifest
    size = check_size(manifest.sizes, size or bundle.spec.default_size)
    step_levels(bundle.spec, steps)
    if not prompts or len(prompts) != len(seeds):
        raise EngineError(
            f"{len(prompts)} prompts and {len(seeds)} seeds: expected as many of each, at least one"
        )
    limit = max(manifest.batch_sizes)
    batches = [slice(start, start + limit) for start in range(0, len(prompts), limit)]
    return np.concatenate([draw(prompts[part], seeds[part], size) for part in batches])


def check_size(sizes: Sequence[Size], size: Size) -> Size:
    """`size` if the bundle was checked at it.

    Raises:
        EngineError: it was not; the message lists the sizes.
    """
    if tuple(size) not in [tuple(known) for known in sizes]:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise EngineError(f"size {size[0]}x{size[1]}: this bundle has {listed}")
    return size
