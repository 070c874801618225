"""Score identity Distillation: the two losses, pure functions of tensors and callables.

The networks enter as callables `f(x_t, t_B) -> velocity` with conditioning and guidance already
inside (`sid.md` 2.3, 2.4 and 6.1; arXiv 2509.25127, section 4; SiD: arXiv 2404.04057, eq. 23).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from . import flow

Velocity = Callable[[Tensor, Tensor], Tensor]
Weighting = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(t_B, x_g, f_phi) -> weight, broadcastable over latents; always without gradient."""


def _of_time(function: Callable[[Tensor], Tensor]) -> Weighting:
    return lambda t_B, x_g, f_phi: flow.per_image(function(t_B), x_g)


def _sid_legacy(t_B: Tensor, x_g: Tensor, f_phi: Tensor) -> Tensor:
    """1 / mean|x_g - f_phi| per image, the normaliser of SiD, SiD-LSG and DMD, clipped at 1e-5."""
    distance = (x_g - f_phi).abs().flatten(1).mean(1)
    return flow.per_image(1 / distance.clamp(min=1e-5), x_g)


WEIGHTINGS: dict[str, Weighting] = {
    "1_minus_sigma": _of_time(lambda t: 1 - t),
    "1_minus_sigma_squared": _of_time(lambda t: (1 - t) ** 2),
    "1_over_sigma": _of_time(lambda t: 1 / t),
    "1_over_sigma2": _of_time(lambda t: 1 / t**2),
    "snr_sqrt": _of_time(lambda t: (1 - t) / t),
    "snr": _of_time(flow.snr),
    "sid_legacy": _sid_legacy,
}
"""Weights w(t) of the generator loss in x0 space, under their published names (`sid.md` 2.4)."""


class Loss(NamedTuple):
    """A loss to be minimised, and how many images were left out of it.

    Attributes:
        total: Sum over latent elements, divided by the number of images B.
        per_image_B: The addends, detached: sums over latent elements.
        dropped: Images with non-finite values; they add nothing (`sid.md` 2.4).
        adversarial_B: The share of the addends that is adversarial, in a data-aided run.
    """

    total: Tensor
    per_image_B: Tensor
    dropped: int
    adversarial_B: Tensor | None = None

    def scaled(self, factor: float) -> Loss:
        share_B = None if self.adversarial_B is None else self.adversarial_B * factor
        return Loss(self.total * factor, self.per_image_B * factor, self.dropped, share_B)

    def with_adversarial(self, other: Loss) -> Loss:
        """The sum of both. What breaks a velocity breaks the features before it too, so the larger
        count is that of the images dropped from either."""
        dropped = max(self.dropped, other.dropped)
        per_image_B = self.per_image_B + other.per_image_B
        return Loss(self.total + other.total, per_image_B, dropped, other.per_image_B)


def fake_loss(fake: Velocity, x_g: Tensor, eps: Tensor, t_B: Tensor) -> Loss:
    """Flow matching of the fake score network on generated images (`sid.md` 2.3).

    sum || v_psi(x_t) - (eps - x_g) ||^2 with x_g fixed and unit weight in velocity space.

    Args:
        fake: Guided velocity of the fake score network (kappa 1).
        x_g: Generated clean latents [B, C, H, W]; no gradient reaches them.
        eps: Fresh noise of the same shape.
        t_B: Noise levels [B].
    """
    x_g = x_g.detach()
    x_t = flow.add_noise(torch.where(_finite(x_g), x_g, 0), eps, t_B)
    error = contained(fake(x_t, t_B)).float() - flow.velocity(x_g, eps).float()
    return reduce(error**2)


def generator_loss(
    teacher: Velocity,
    fake: Velocity,
    x_g: Tensor,
    eps: Tensor,
    t_B: Tensor,
    alpha: float = 1.0,
    weighting: str = "1_minus_sigma",
    fake_inner: Velocity | None = None,
) -> Loss:
    """SiD's loss of the generator (`sid.md` 2.4).

    sum w(t) d ((f_phi - x_g) - alpha (f_phi - f_psi')) with d = f_phi - f_psi, where f_psi' is the
    fake network under kappa 3. In every published run of flow-matching models kappa 2 = kappa 3, so
    that f_psi' = f_psi and, for alpha = 1, the second factor is f_psi - x_g.

    Gradient flows through x_g on every path, also through the *inputs* of teacher and fake network:
    freeze their parameters, but do not run them under `no_grad`.

    Args:
        teacher: Guided velocity of the teacher (kappa 4).
        fake: Guided velocity of the fake score network (kappa 2).
        x_g: Generated clean latents [B, C, H, W], with their graph.
        eps: Fresh noise, the same for both networks.
        t_B: Noise levels [B].
        alpha: 1 in all published flow-matching runs; 0.5 ... 1.2 have been used elsewhere.
        weighting: A key of `WEIGHTINGS`.
        fake_inner: The fake score network under kappa 3, where that differs from kappa 2.
    """
    x_g = contained(x_g)
    x_t = flow.add_noise(x_g, eps, t_B)
    f_phi = flow.x0_from_velocity(x_t, teacher(x_t, t_B), t_B).float()
    f_psi = flow.x0_from_velocity(x_t, fake(x_t, t_B), t_B).float()
    x_g = x_g.float()
    with torch.no_grad():
        weight = WEIGHTINGS[weighting](t_B, x_g, f_phi)
    d = d_inner = f_phi - f_psi
    if fake_inner is not None:
        d_inner = f_phi - flow.x0_from_velocity(x_t, fake_inner(x_t, t_B), t_B).float()
    return reduce(weight * d * ((f_phi - x_g) - alpha * d_inner))


def reduce(elements: Tensor) -> Loss:
    """Sums over all but the first axis, then divides by the batch; non-finite images are masked out.

    The masking is a `where` on the loss, so the gradient of a dropped image is 0 * NaN further down;
    `contained` keeps that from the rest of the batch.
    """
    finite = _finite(elements)
    per_image_B = torch.where(finite, elements, 0).flatten(1).sum(1)
    return Loss(per_image_B.sum() / len(elements), per_image_B.detach(), int((~finite).sum()))


def contained(images: Tensor) -> Tensor:
    """The same images; a gradient that is not finite in all of one's elements ends here for that image.

    Below, where parameters sum their gradients over the batch, one NaN would make them all NaN. What is left
    is a network whose own activations are NaN for an image; `clean_gradients` takes care of that.
    """
    if not images.requires_grad:
        return images
    same = images.view_as(images)
    same.register_hook(lambda gradient: torch.where(_finite(gradient), gradient, 0))
    return same


def _finite(images: Tensor) -> Tensor:
    """Which images are finite throughout, bool [B, 1, ...]."""
    return flow.per_image(images.detach().isfinite().flatten(1).all(1), images)


def clean_gradients(parameters: list[torch.nn.Parameter], limit: float = 1e5) -> float:
    """Replaces non-finite gradients by 0 and +-`limit` in place; returns the norm of what is left."""
    norms = []
    for parameter in parameters:
        if parameter.grad is not None:
            torch.nan_to_num_(parameter.grad, nan=0.0, posinf=limit, neginf=-limit)
            norms.append(parameter.grad.norm())
    if not norms:
        return 0.0
    total = torch.stack(norms).norm()
    return float(total.full_tensor() if isinstance(total, DTensor) else total)
