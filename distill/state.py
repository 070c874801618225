"""The state of a distillation: two trained copies of the teacher, their optimizers, the average."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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
        return {
            name: part.state_dict() if hasattr(part, "state_dict") else part
            for name, part in vars(self).items()
            if part is not None
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            part = getattr(self, name)
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(value)
            else:
                setattr(self, name, value)


def new_state(recipe: Recipe, transformer: nn.Module, start: nn.Module | None = None) -> State:
    """Generator and fake network as copies of the teacher, each with an Adam of its own.

    With `start` the generator and its average are copies of that (`sid.md` 2.1, 2.9).
    """
    start = start or transformer
    generator, fake = copy.deepcopy(start).train(), copy.deepcopy(transformer).train()
    wanted = recipe.optimizer

    def adam(module: nn.Module, rate: float) -> torch.optim.Optimizer:
        betas = (wanted.beta1, wanted.beta2)
        return torch.optim.Adam(module.parameters(), rate, betas=betas, eps=wanted.eps, fused=True)

    return State(
        generator,
        fake,
        adam(generator.requires_grad_(True), wanted.lr_generator),
        adam(fake.requires_grad_(True), wanted.lr_fake),
        copy.deepcopy(start).requires_grad_(False) if recipe.ema else None,
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
        for average, value in zip(ema.parameters(), live.parameters(), strict=True):
            average.lerp_(value, 1 - decay)
