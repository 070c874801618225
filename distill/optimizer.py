"""Adam that keeps no first moment when beta1 is 0, as in SiD: one number per parameter instead of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Adam(torch.optim.Optimizer):
    """Adam (arXiv 1412.6980, algorithm 1) with the numbers of `torch.optim.Adam`.

    With beta1 = 0 the first moment is the gradient itself and its bias correction is 1. The moments
    are there from the start, so that a checkpoint can be read into them.

    Args:
        parameters: What is trained.
        lr: Learning rate, positive.
        betas: Decay of the moments, each in [0, 1).
        eps: Added to the root of the second moment.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.0, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "steps": 0})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["second"] = torch.zeros_like(parameter.detach())
                if group["betas"][0]:
                    self.state[parameter]["first"] = torch.zeros_like(parameter.detach())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, parameter.grad, self.state[parameter], group)

    @property
    def steps(self) -> int:
        """Updates so far."""
        return int(self.param_groups[0]["steps"])

    @steps.setter
    def steps(self, value: int) -> None:
        for group in self.param_groups:
            group["steps"] = value

    def moments(self) -> dict[str, Tensor]:
        """All moments by kind and number of the parameter; the tensors themselves."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return {
            f"{kind}.{number}": moment
            for number, parameter in enumerate(parameters)
            for kind, moment in self.state[parameter].items()
        }


def _update(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    (beta1, beta2), steps = group["betas"], group["steps"]
    second = state["second"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    first = state["first"].lerp_(gradient, 1 - beta1) if beta1 else gradient
    root = (second.sqrt() / math.sqrt(1 - beta2**steps)).add_(group["eps"])
    parameter.addcdiv_(first, root, value=-group["lr"] / (1 - beta1**steps))
