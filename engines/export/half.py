"""Parts in half precision: weights and arithmetic in 16 bits, except for named islands.

Half precision is traced, never converted from a finished graph: a graph that is converted casts the time
input too, whose error is then the largest of all. Inputs and outputs stay float32. Every layer casts
what it is given to the type of its weights, so a layer can be kept in float32 by its name alone.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .graphs import Part

LAST = {"text_encoder": r"^$", "denoiser": r"\.proj_out$", "decoder": r"\.conv_out(\.conv)?$"}
"""Layers whose result is the part's: it is not rounded."""
ISLANDS = {
    "text_encoder": r"norm|\.wo$",
    "denoiser": r"^$",
    "decoder": r"norm",
}
"""Layers that stay in float32, by their names: what is normalised or embeds the time, and the layer of T5
whose results overflow in float16."""


def in_half(part: Part, dtype: torch.dtype) -> Part:
    """The same part with its layers in `dtype`, its islands and last layer in float32.

    The weights are copied one by one; `part` keeps its own.
    """
    islands = re.compile(f"{ISLANDS[part.name]}|{LAST[part.name]}")
    last = re.compile(LAST[part.name])
    memo: dict[int, Any] = {}
    for name, module in part.module.named_modules():
        for weight in module.parameters(recurse=False):
            keep = islands.search(name) is not None
            memo[id(weight)] = weight if keep else _cast(weight, dtype)
    memo.update({id(buffer): buffer for buffer in part.module.buffers()})
    twin = copy.deepcopy(part.module, memo)
    for name, module in twin.named_modules():
        if not list(module.children()) and list(module.parameters()):
            module._result = None if last.search(name) else dtype
            module.forward = MethodType(_forward, module)
    return replace(part, module=_Float32Outputs(twin))


def islands_of(part: Part) -> tuple[str, ...]:
    """Names of the layers of a part made by `in_half` that compute in float32."""
    layers = part.module.get_submodule("inner").named_modules()
    return tuple(
        name
        for name, layer in layers
        if any(weight.dtype == torch.float32 for weight in layer.parameters(recurse=False))
    )


class _Float32Outputs(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...] | Tensor:
        outputs: tuple[Tensor, ...] | Tensor = self.inner(*inputs)
        if isinstance(outputs, Tensor):
            return outputs.float()
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)


def _forward(layer: Any, *inputs: Any, **named: Any) -> Tensor:
    dtype = next(layer.parameters()).dtype
    found = type(layer).forward(layer, *(_to(value, dtype) for value in inputs), **named)
    result: Tensor = found if layer._result is None else _to(found, layer._result)
    return result


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _cast(weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(weight.detach().to(dtype), requires_grad=False)
