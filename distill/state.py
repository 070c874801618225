"""The state of a distillation: two trained roles, their optimizers, the average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import roles
from .recipe import Recipe


@dataclass
class State:
    """All that changes during a run; a checkpoint holds exactly this."""

    generator: nn.Module
    fake: nn.Module
    generator_optimizer: torch.optim.Optimizer
    fake_optimizer: torch.optim.Optimizer
    ema: nn.Module | None
    iteration: int = 0
    spread_at_start: float = 0.0
    best_score: float = math.inf
    lost: int = 0
    """Iterations in a row in which every image was dropped."""

    def state_dict(self) -> dict[str, Any]:
        return {name: _saved(part) for name, part in vars(self).items() if part is not None}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            part = getattr(self, name)
            if isinstance(part, nn.Module):
                roles.load_weights(part, value)
            elif hasattr(part, "load_state_dict"):
                part.load_state_dict(value)
            else:
                setattr(self, name, value)


def _saved(part: Any) -> Any:
    if isinstance(part, nn.Module):
        return roles.weights(part)
    return part.state_dict() if hasattr(part, "state_dict") else part


def new_state(recipe: Recipe, transformer: nn.Module, targets: Sequence[str] = ()) -> State:
    """Generator and fake network as the teacher is, each with an Adam of its own.

    Args:
        recipe: Says what of them is trained, and how.
        transformer: The teacher's.
        targets: Ends of the names of the layers that an adapter changes by default.

    Raises:
        DistillError: the recipe's adapter does not fit the network.
    """
    generator, fake = (
        roles.new_role(transformer, recipe.adapter, targets, 2 * recipe.seed + number) for number in (0, 1)
    )
    wanted = recipe.optimizer

    def adam(module: nn.Module, rate: float) -> torch.optim.Optimizer:
        betas = (wanted.beta1, wanted.beta2)
        parameters = roles.trained(module).values()
        return torch.optim.Adam(parameters, rate, betas=betas, eps=wanted.eps, fused=True)

    return State(
        generator,
        fake,
        adam(generator, wanted.lr_generator),
        adam(fake, wanted.lr_fake),
        roles.average_of(generator) if recipe.ema else None,
    )


def set_rates(state: State, recipe: Recipe) -> None:
    factor = 1.0
    if recipe.optimizer.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * state.iteration / recipe.iterations))
    wanted = recipe.optimizer
    rates = ((state.generator_optimizer, wanted.lr_generator), (state.fake_optimizer, wanted.lr_fake))
    for optimizer, rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


@torch.no_grad()
def follow(ema: nn.Module | None, live: nn.Module, decay: float | None) -> None:
    """ema <- decay ema + (1 - decay) live."""
    if ema is not None and decay is not None:
        pairs = zip(roles.trained(ema).values(), roles.trained(live).values(), strict=True)
        for average, value in pairs:
            average.lerp_(value, 1 - decay)
