"""The data-aided part of SiD: the fake score network as its own discriminator (`sid.md` 2.9 and 6.2).

The discriminator has no parameters of its own. Its logits are the output of the fake network's last
modulated norm, averaged over the tokens of the picture: each of the C channels is one logit. They come
from the very evaluation that gives the velocity (SiDA: arXiv 2410.14919; with several steps: 2505.12674).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from . import sid
from .families import Family
from .sampler import Network

LOGIT_LIMIT = 10.0
SHARE = 0.5  # of each of the generator's two losses in the combined stage


def discriminator_loss(real_BC: Tensor, fake_BC: Tensor, elements: int) -> sid.Loss:
    """Tells real from generated pictures; added to the fake network's own loss.

    1/2 (mean_c BCE(real, 1) + mean_c BCE(fake, 0)) * elements, averaged over the B pairs. Real and
    generated latents are noised with the same eps and t, and neither carries a gradient of its own.
    A pair of which one half is not finite is dropped.

    Args:
        real_BC: Logits of real images under their own captions.
        fake_BC: Logits of generated images, of the evaluation that `sid.fake_loss` regresses.
        elements: C H W of one image's latents; keeps the loss in proportion to sums over them.
    """
    return sid.reduce(
        0.5 * (_cross_entropy(real_BC, real=True) + _cross_entropy(fake_BC, real=False)) * elements
    )


def generator_loss(fake_BC: Tensor, t_B: Tensor, elements: int, weighting: str = "1_minus_sigma") -> sid.Loss:
    """Has generated pictures taken for real ones: w(t) mean_c BCE(fake, 1) * elements, averaged over B.

    Args:
        fake_BC: Logits of generated images, with their graph down to the generator: parameters of the
            fake network frozen, of the evaluation that gives f_psi.
        t_B: Noise levels of that evaluation.
        elements: C H W of one image's latents.
        weighting: A key of `sid.WEIGHTINGS` that depends on time alone: any but `sid_legacy`.
    """
    weight_B1 = sid.WEIGHTINGS[weighting](t_B, fake_BC, fake_BC)
    return sid.reduce(weight_B1 * _cross_entropy(fake_BC, real=True) * elements)


def combined(loss: sid.Loss, adversarial: sid.Loss, weight: float = 1.0) -> sid.Loss:
    """The generator's loss of the last stage: 0.5 (100 SiD) + 0.5 (lambda L_G).

    With the factor 100 already in `loss`, lambda = 1 is an adversarial weight of 1/100.
    """
    return loss.scaled(SHARE).with_adversarial(adversarial.scaled(SHARE * weight))


def _cross_entropy(logits_BC: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of each logit, clamped to ±10, divided by their number C; NaN if not finite."""
    logits = logits_BC.float()
    clamped = torch.where(logits.isfinite(), logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), torch.nan)
    return F.softplus(-clamped if real else clamped) / logits.shape[1]


class Critic:
    """A network that leaves the discriminator's logits behind whenever it gives a velocity.

    Attributes:
        logits_BC: Of the last call; under guidance those of the conditional branch.
    """

    logits_BC: Tensor

    def __init__(self, network: Network, family: Family, module: nn.Module) -> None:
        self.network, self.norm = network, last_norm(family, module)
        self.sharded = isinstance(module, FSDPModule)

    def __call__(self, x_t: Tensor, t_B: Tensor) -> Tensor:
        tokens: list[Tensor] = []
        hook = self.norm.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
        try:
            velocity = self.network(x_t, t_B)
        finally:
            hook.remove()
        logits_BC = tokens[0][-len(x_t) :].float().mean(1)
        if self.sharded:
            logits_BC = _Beside.apply(logits_BC, velocity)  # type: ignore[no-untyped-call]
        self.logits_BC = logits_BC
        return velocity


class _Beside(torch.autograd.Function):
    """Logits, unchanged, whose gradient also enters the network by the velocity, as zeros: FSDP gathers a
    network's weights for the backward pass when a gradient reaches its output, and would not see one that
    starts inside. Not a sum with 0 * velocity, which would carry its NaN over."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, velocity: Tensor) -> Tensor:
        ctx.save_for_backward(velocity)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (velocity,) = ctx.saved_tensors
        return gradient, torch.zeros_like(velocity)


def last_norm(family: Family, module: nn.Module) -> nn.Module:
    """The last modulated norm of a transformer, also of one that is wrapped (sharded, adapted)."""
    found: list[nn.Module] = [
        part for name, part in module.named_modules() if name.split(".")[-1] == family.last_norm
    ]
    if len(found) != 1:
        raise ValueError(f"{family.name}: {len(found)} modules named {family.last_norm}; expected one")
    return found[0]
