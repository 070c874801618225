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
    adversarial: float | None = None
    images: int = 0
    dropped: int = 0
    spread: float = 0.0
    """Standard deviation over the images of the generated latents, averaged over positions."""
    _moments: Tensor | None = None
    """Count, sum and sum of squares of the generated latents at each position, [3, C, H, W]."""

    def add(self, loss: Loss, x_g: Tensor) -> None:
        self.total += float(loss.per_image_B.sum())
        if loss.adversarial_B is not None:
            self.adversarial = (self.adversarial or 0.0) + float(loss.adversarial_B.sum())
        self.images += len(x_g)
        self.dropped += loss.dropped
        finite = x_g[x_g.flatten(1).isfinite().all(1)].double()
        moments = torch.stack([torch.ones_like(finite).sum(0), finite.sum(0), finite.square().sum(0)])
        self._moments = moments if self._moments is None else self._moments + moments

    def over(self, ranks: Ranks) -> Report:
        """The report on all ranks' images, complete with their spread."""
        assert self._moments is not None
        moments = ranks.sum(self._moments)
        mine = [self.total, self.adversarial or 0.0, self.images, self.dropped]
        total, adversarial, images, dropped = ranks.sum(moments.new_tensor(mine)).tolist()
        part = None if self.adversarial is None else adversarial
        return Report(total, part, int(images), int(dropped), _spread(*moments))

    @property
    def loss(self) -> float | None:
        """None of an update that did not take place."""
        return self.total / self.images if self.images else None

    @property
    def adversarial_loss(self) -> float | None:
        """The share of `loss` that is adversarial, if there is one."""
        return None if self.adversarial is None else self.adversarial / self.images


def _spread(count: Tensor, total: Tensor, squares: Tensor) -> float:
    """0 for fewer than two images."""
    variance = (squares - total.square() / count.clamp(min=1)) / (count - 1).clamp(min=1)
    return float(variance.clamp(min=0).sqrt().mean())


@dataclass(frozen=True)
class Iteration:
    """The figures of one iteration; gradient norms are of the scaled losses.

    In the first stage of a data-aided run the generator rests, and its figures are left out.
    """

    k: int
    fake: Report
    generator: Report
    fake_norm: float
    generator_norm: float | None
    seconds: float

    def as_event(self) -> dict[str, Any]:
        figures = {
            "k": self.k,
            "loss_fake": self.fake.loss,
            "loss_discriminator": self.fake.adversarial_loss,
            "loss_generator": self.generator.loss,
            "loss_adversarial": self.generator.adversarial_loss,
            "grad_norm_fake": self.fake_norm,
            "grad_norm_generator": self.generator_norm,
            "spread": self.last.spread,
            "dropped": self.fake.dropped + self.generator.dropped,
        }
        return {name: value for name, value in figures.items() if value is not None}

    @property
    def last(self) -> Report:
        """The newest look at what the generator makes."""
        return self.generator if self.generator.images else self.fake
