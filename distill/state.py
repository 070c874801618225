"""The state of a distillation: two trained roles, their optimizers, the average."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import roles
from .optimizer import Adam
from .recipe import Recipe

Place = Callable[[nn.Module], nn.Module]

FIGURES = ("iteration", "spread_at_start", "best_score", "lost")


@dataclass
class State:
    """All that changes during a run; a checkpoint holds exactly this."""

    generator: nn.Module
    fake: nn.Module
    generator_optimizer: Adam
    fake_optimizer: Adam
    ema: nn.Module | None
    iteration: int = 0
    spread_at_start: float = 0.0
    best_score: float = math.inf
    lost: int = 0
    """Iterations in a row in which every image was dropped."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by a name of its own; the tensors themselves, so they can be read into."""
        modules = {"generator": self.generator, "fake": self.fake, "ema": self.ema}
        parts = {name: roles.weights(module) for name, module in modules.items() if module is not None}
        parts["generator_optimizer"] = self.generator_optimizer.moments()
        parts["fake_optimizer"] = self.fake_optimizer.moments()
        return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}

    def figures(self) -> dict[str, float]:
        """Whatever is not a tensor."""
        steps = {"generator_steps": self.generator_optimizer.steps, "fake_steps": self.fake_optimizer.steps}
        return {**{name: getattr(self, name) for name in FIGURES}, **steps}

    def set_figures(self, figures: dict[str, Any]) -> None:
        self.generator_optimizer.steps = figures["generator_steps"]
        self.fake_optimizer.steps = figures["fake_steps"]
        for name in FIGURES:
            setattr(self, name, figures[name])


def new_state(
    recipe: Recipe,
    transformer: nn.Module,
    start: nn.Module | None = None,
    targets: Sequence[str] = (),
    place: Place = lambda role: role,
) -> State:
    """Generator and fake network as the teacher is, each with an Adam of its own.

    Args:
        recipe: Says what of them is trained, and how.
        transformer: The teacher's.
        start: What generator and average start as, if not as that (`sid.md` 2.1, 2.9).
        targets: Ends of the names of the layers that an adapter changes by default.
        place: Moves or shards a network before it gets its optimizer.

    Raises:
        DistillError: the recipe's adapter does not fit the network.
    """
    role = partial(roles.new_role, adapter=recipe.adapter, targets=targets)
    generator = role(start or transformer, seed=2 * recipe.seed)
    ema = place(roles.average_of(generator)) if recipe.ema else None
    generator = place(generator)
    fake = place(role(transformer, seed=2 * recipe.seed + 1))
    wanted = recipe.optimizer

    def adam(module: nn.Module, rate: float) -> Adam:
        betas = (wanted.beta1, wanted.beta2)
        return Adam(roles.trained(module).values(), rate, betas, wanted.eps)

    return State(generator, fake, adam(generator, wanted.lr_generator), adam(fake, wanted.lr_fake), ema)


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
