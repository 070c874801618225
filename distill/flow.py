"""Flow-matching algebra: pure functions of tensors (`sid.md` 1.1; arXiv 2509.25127, section 3).

Time runs from t = 0 (data) to t = 1 (noise) and is the noise level: x_t = (1 - t) x0 + t eps, the
convention of SD3, FLUX and SANA in diffusers. Suffixes name axes: B batch, C channels, H height, W
width. Levels `t_B` are float32; functions return the dtype that the arithmetic promotes to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def per_image(t_B: Tensor, like: Tensor) -> Tensor:
    """`t_B` with trailing axes of size 1, to be broadcast over `like`."""
    return t_B.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps."""
    t = per_image(t_B, x0)
    return (1 - t) * x0 + t * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """The regression target v = eps - x0."""
    return eps - x0


def x0_from_velocity(x_t: Tensor, v: Tensor, t_B: Tensor) -> Tensor:
    """x0hat = x_t - t v."""
    return x_t - per_image(t_B, x_t) * v


def eps_from_velocity(x_t: Tensor, v: Tensor, t_B: Tensor) -> Tensor:
    """epshat = x_t + (1 - t) v."""
    return x_t + (1 - per_image(t_B, x_t)) * v


def velocity_from_x0(x_t: Tensor, x0: Tensor, t_B: Tensor) -> Tensor:
    """v = (x_t - x0) / t, for t > 0."""
    return (x_t - x0) / per_image(t_B, x_t)


def score_from_velocity(x_t: Tensor, v: Tensor, t_B: Tensor) -> Tensor:
    """grad log p_t(x_t) = -(x_t + (1 - t) v) / t, for t > 0 (Tweedie)."""
    return -eps_from_velocity(x_t, v, t_B) / per_image(t_B, x_t)


def snr(t_B: Tensor) -> Tensor:
    """Signal-to-noise ratio ((1 - t) / t)^2."""
    return ((1 - t_B) / t_B) ** 2


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance u + kappa (v - u): kappa = 1 is none, 0 is unconditional."""
    return unconditional + scale * (conditional - unconditional)


def level_of_angle(theta: Tensor) -> Tensor:
    """The t of the same signal-to-noise ratio as TrigFlow's theta: tan(theta) = t / (1 - t) (`sid.md` 1.1)."""
    return theta.sin() / (theta.sin() + theta.cos())


def logit_normal(
    count: int, generator: torch.Generator, mean: float = math.log(2), std: float = 1.6, device: str = "cpu"
) -> Tensor:
    """Noise levels t = sigmoid(n), n ~ N(mean, std^2), float32 [count] (`sid.md` 1.3).

    The defaults are the published law for both losses: median t = 2/3. In float32 t can round to 1,
    never to 0.
    """
    n = torch.randn(count, generator=generator, device=device, dtype=torch.float32)
    return torch.sigmoid(mean + std * n)
