"""What one iteration of a distillation has to say for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .sid import Loss


@dataclass
class Report:
    """Sums over the parts of one batch."""

    total: float = 0.0
    images: int = 0
    dropped: int = 0
    spread: float = 0.0
    """Standard deviation over the images of the generated latents, averaged over positions."""

    def add(self, loss: Loss, x_g: Tensor) -> None:
        self.total += float(loss.per_image_B.sum())
        self.images += len(x_g)
        self.dropped += loss.dropped
        finite = x_g[x_g.flatten(1).isfinite().all(1)]
        if len(finite) > 1:
            self.spread = float(finite.float().std(0).mean())

    @property
    def loss(self) -> float:
        return self.total / self.images


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
