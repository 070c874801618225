"""A toy world in which everything is known: a 2-D mixture of Gaussians with its exact velocity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill import flow

MEANS = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0]])
STD = 0.3


def draw(count: int, source: torch.Generator) -> Tensor:
    """Samples of the mixture, [count, 2]."""
    modes = MEANS[torch.randint(len(MEANS), (count,), generator=source)]
    return modes + STD * torch.randn(count, 2, generator=source)


def exact_velocity(x_t: Tensor, t_B: Tensor) -> Tensor:
    """(x_t - E[x0 | x_t]) / t, by Bayes' rule over the modes."""
    t = t_B[:, None, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    offset = x_t[:, None] - (1 - t) * MEANS
    weights = torch.softmax(-(offset**2).sum(-1) / (2 * variance[..., 0]), dim=1)[..., None]
    x0 = (weights * (MEANS + (1 - t) * STD**2 / variance * offset)).sum(1)
    return flow.velocity_from_x0(x_t, x0, t_B)


class Net(nn.Module):
    """A small velocity network (x_t, t) -> v."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 9, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x_t: Tensor, t_B: Tensor) -> Tensor:
        waves = t_B[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
        return self.layers(torch.cat([x_t, t_B[:, None], waves.sin(), waves.cos()], dim=1))


def mmd2(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy under a sum of Gaussian kernels (biased, so never negative)."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = torch.cdist(x, y) ** 2
        return sum(torch.exp(-squared / (2 * width**2)) for width in (0.3, 1.0, 3.0)).mean()

    return float(kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
