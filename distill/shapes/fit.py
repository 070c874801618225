"""The supervised training loop of the shapes world: autoencoder, teacher and judge all use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..files import atomic_file
from ..progress import progress

CHECKPOINT_EVERY = 250


@dataclass(frozen=True)
class Schedule:
    """Length and pace of a training; the learning rate warms up, then falls to zero as a cosine."""

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    ema: float = 0.998
    weight_decay: float = 0.01


LossFunction = Callable[[np.random.Generator, int], Tensor]


def fit(
    name: str, model: nn.Module, loss: LossFunction, schedule: Schedule, seed: int, checkpoint: Path
) -> None:
    """Minimises `loss(rng, batch)` over the parameters of `model`, which end as their moving average.

    An interrupted run continues from `checkpoint`. Random numbers depend on (seed, step) only, so
    that a continued run draws what an uninterrupted one would have drawn.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), schedule.lr, betas=(0.9, 0.98), weight_decay=schedule.weight_decay, fused=True
    )
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    start = _resume(checkpoint, model, average, optimizer)
    model.train()
    with progress(name, schedule.steps, start) as shown:
        for step in range(start, schedule.steps):
            torch.manual_seed(seed * 1_000_003 + step)
            value = loss(np.random.default_rng((seed, step)), schedule.batch)
            _update(optimizer, value, _rate(schedule, step))
            _follow(average, model, min(schedule.ema, (1 + step) / (10 + step)))
            if (step + 1) % CHECKPOINT_EVERY == 0:
                _save(checkpoint, step + 1, model, average, optimizer)
            shown.update(step + 1, f"loss {value.item():.4f}")
    model.load_state_dict(average)
    model.eval()


def _rate(schedule: Schedule, step: int) -> float:
    rise = min(1.0, (step + 1) / schedule.warmup)
    return schedule.lr * rise * 0.5 * (1 + float(np.cos(np.pi * step / schedule.steps)))


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _follow(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def _save(
    path: Path, step: int, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    state = {"step": step, "model": model.state_dict(), "average": average}
    with atomic_file(path) as temporary:
        torch.save({**state, "optimizer": optimizer.state_dict()}, temporary)


def _resume(
    path: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Loads `path` if it is there; returns the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for key, value in state["average"].items():
        average[key].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
