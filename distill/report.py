"""What one iteration of a distillation has to say for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .parallel import Ranks
from .sid import Loss


@dataclass
class Report:
    """Sums over the parts of one batch."""

    total: float = 0.0
    images: int = 0
    dropped: int = 0
    spread: float = 0.0
    """Standard deviation over the images of the generated latents, averaged over positions."""
    _moments: Tensor | None = None
    """Count, sum and sum of squares of the generated latents at each position, [3, C, H, W]."""

    def add(self, loss: Loss, x_g: Tensor) -> None:
        self.total += float(loss.per_image_B.sum())
        self.images += len(x_g)
        self.dropped += loss.dropped
        finite = x_g[x_g.flatten(1).isfinite().all(1)].double()
        moments = torch.stack([torch.ones_like(finite).sum(0), finite.sum(0), finite.square().sum(0)])
        self._moments = moments if self._moments is None else self._moments + moments

    def over(self, ranks: Ranks) -> Report:
        """The report on all ranks' images, complete with their spread."""
        assert self._moments is not None
        moments = ranks.sum(self._moments)
        figures = ranks.sum(moments.new_tensor([self.total, self.images, self.dropped]))
        total, images, dropped = figures.tolist()
        return Report(total, int(images), int(dropped), _spread(*moments))

    @property
    def loss(self) -> float:
        return self.total / self.images


def _spread(count: Tensor, total: Tensor, squares: Tensor) -> float:
    """0 for fewer than two images."""
    variance = (squares - total.square() / count.clamp(min=1)) / (count - 1).clamp(min=1)
    return float(variance.clamp(min=0).sqrt().mean())


@dataclass(frozen=True)
class Iteration:
    """The figures of one iteration; gradient norms are of the scaled losses."""

    k: int
    fake: Report
    generator: Report
    fake_norm: float
    generator_norm: float
    seconds: float

    def as_event(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "loss_fake": self.fake.loss,
            "loss_generator": self.generator.loss,
            "grad_norm_fake": self.fake_norm,
            "grad_norm_generator": self.generator_norm,
            "spread": self.generator.spread,
            "dropped": self.fake.dropped + self.generator.dropped,
        }
