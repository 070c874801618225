"""Sampling over PyTorch tensors: the few-step loop of students and the Euler loop of teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import flow
from .errors import DistillError
from .families import Conditioning, Family, concat, with_guidance
from .pipeline import Pipeline
from .spec import Renoise

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_BCHW, t_B) -> velocity, conditioning and guidance inside."""

NoiseSource = Callable[[int], Tensor]
"""Step index -> standard normal noise [B, C, H, W]."""


def guided_network(
    transformer: nn.Module,
    family: Family,
    time_scale: float,
    conditioning: Conditioning,
    unconditional: Conditioning | None = None,
    scale: float = 1.0,
    embed: float | None = None,
    with_text: bool = False,
) -> Network:
    """Velocity of `transformer` under classifier-free guidance.

    `scale` 1 evaluates the conditional branch only, 0 the unconditional one only; else both run as
    one doubled batch, the conditional branch last. `unconditional` is needed unless `scale` is 1.
    `embed` is the value of the guidance input, in both branches, for a network that has one.
    `with_text` evaluates the conditional branch at scale 0 too, for what it shows on the way.
    """

    def plain(x: Tensor, t_B: Tensor, what: Conditioning) -> Tensor:
        return family.velocity(transformer, x, time_scale * t_B, with_guidance(what, embed))

    if scale == 1:
        return lambda x, t_B: plain(x, t_B, conditioning)
    if unconditional is None:
        raise ValueError(f"guidance scale {scale} needs the unconditional embedding")
    if scale == 0 and not with_text:
        return lambda x, t_B: plain(x, t_B, unconditional)
    both = concat(unconditional, conditioning)

    def doubled(x: Tensor, t_B: Tensor) -> Tensor:
        u, v = plain(torch.cat([x, x]), torch.cat([t_B, t_B]), both).chunk(2)
        return flow.guided(u, v, scale)

    return doubled


def rollout(
    network: Network,
    levels: Sequence[float],
    noise: NoiseSource,
    renoise: Renoise = "fresh",
    steps: int | None = None,
    grad: bool = False,
) -> Tensor:
    """The clean estimate D after the first `steps` of `levels` (default: all of them).

    x = (1 - t) D + t e;  D = x - t v(x, t). Steps before the last run without building a graph, and
    with `grad` back-propagation passes through the last network evaluation only (`sid.md` 2.2). Under
    `ddim` each step is an Euler step of the flow: (1 - t') D + t' e = x + (t' - t) v.
    """
    steps = steps or len(levels)
    first = noise(0)
    clean, x = torch.zeros_like(first), first
    for i, level in enumerate(levels[:steps]):
        with torch.no_grad():
            e = first if i == 0 else _next_noise(renoise, noise, i, first, x, clean, levels[i - 1])
            x = (1 - level) * clean + level * e
        with torch.set_grad_enabled(grad and i == steps - 1):
            t_B = torch.full((len(x),), level, device=x.device)
            clean = flow.x0_from_velocity(x, network(x, t_B), t_B)
    return clean


def _next_noise(
    rule: Renoise, noise: NoiseSource, i: int, first: Tensor, x: Tensor, clean: Tensor, level: float
) -> Tensor:
    """The noise of step `i`: `fresh`, `fixed` (the first again), or `ddim` (implied by x and D)."""
    if rule == "fresh":
        return noise(i)
    return first if rule == "fixed" else (x - (1 - level) * clean) / level


def seeded_noise(
    seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> NoiseSource:
    """One counter-based stream (Philox) for each image, keyed by (seed, step).

    The same seed gives the same noise whatever else is in the batch, and the same as in the bundle
    runtimes, which draw it in the same way.
    """

    def draw(seed: int, step: int) -> npt.NDArray[np.float32]:
        return np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64))).standard_normal(
            shape, np.float32
        )

    return lambda step: torch.from_numpy(np.stack([draw(seed, step) for seed in seeds])).to(device)


@torch.no_grad()
def sample_student(pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> Tensor:
    """Pictures [B, 3, H, W] in -1 ... 1 of a student.

    Raises:
        DistillError: the pipeline is a teacher, or does not offer that step count.
    """
    spec = pipeline.spec
    if spec is None:
        raise DistillError(f"{pipeline.folder} is a teacher; a student has generator.json")
    if steps not in spec.levels:
        raise DistillError(f"{pipeline.folder}: {steps} steps; this student offers {sorted(spec.levels)}")
    conditioning, embed = pipeline.embed(prompts), spec.guidance_embedding
    network = guided_network(
        pipeline.transformer, pipeline.family, spec.time_scale, conditioning, embed=embed
    )
    noise = seeded_noise(seeds, pipeline.latent_shape(), pipeline.device)
    return pipeline.decode(rollout(network, spec.levels[steps], noise, spec.renoise))


@torch.no_grad()
def sample_teacher(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 28,
    guidance: float = 1.0,
    true_cfg: float = 1.0,
) -> Tensor:
    """Pictures [B, 3, H, W] in -1 ... 1 of a teacher, stepped by its own scheduler.

    `guidance` is the stock pipeline's `guidance_scale`: the input of a network that takes one
    (FLUX.1-dev), else classifier-free guidance. `true_cfg` is the latter on top of the former.
    """
    embed, scale = (guidance, true_cfg) if pipeline.guidance_input else (None, guidance * true_cfg)
    network = guided_network(
        pipeline.transformer,
        pipeline.family,
        pipeline.time_scale,
        pipeline.embed(prompts),
        pipeline.unconditional(len(prompts)) if scale != 1 else None,
        scale,
        embed,
    )
    scheduler = _scheduler(pipeline, steps, pipeline.default_size)
    x = seeded_noise(seeds, pipeline.latent_shape(), pipeline.device)(0)
    for timestep in scheduler.timesteps:
        t_B = (timestep / scheduler.config.num_train_timesteps).expand(len(x))
        x = scheduler.step(network(x, t_B), timestep, x, return_dict=False)[0]
    return pipeline.decode(x)


def scheduled_levels(pipeline: Pipeline, steps: int, size: tuple[int, int]) -> tuple[float, ...]:
    """The levels at which the stock pipeline runs its network in `steps` steps, its shift included."""
    return tuple(_scheduler(pipeline, steps, size).sigmas[:-1].tolist())


def _scheduler(pipeline: Pipeline, steps: int, size: tuple[int, int]) -> Any:
    """A copy of the pipeline's scheduler, told what the stock pipeline tells it: how many steps, their
    levels, and their shift by the picture's size."""
    arguments: dict[str, Any] = {}
    if pipeline.family.sigmas is not None:
        arguments["sigmas"] = pipeline.family.sigmas(steps)
    if pipeline.modules.scheduler.config.get("use_dynamic_shifting"):
        arguments["mu"] = _shift(pipeline, size)
    scheduler = copy.deepcopy(pipeline.modules.scheduler)
    scheduler.set_timesteps(steps, device=pipeline.device, **arguments)
    return scheduler


def _shift(pipeline: Pipeline, size: tuple[int, int]) -> float:
    """The logarithm of the shift: a straight line in the number of picture tokens."""
    config = pipeline.modules.scheduler.config
    _, height, width = pipeline.latent_shape(size)
    tokens = (height // pipeline.patch) * (width // pipeline.patch)
    few, many = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (many - few)
    return float(config.base_shift + slope * (tokens - few))
