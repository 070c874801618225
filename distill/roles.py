"""Roles on one network: what fake score network and generator own and what they share with the teacher.

Trained in full, each is a copy of the teacher. With an adapter each is a twin of it: a module of its
own on the very same weight tensors, and a LoRA (arXiv 2106.09685) beside them. No adapter is ever
switched on or off, so no gradient and no activation that the backward pass computes again can meet
the adapter of another role, and the teacher remains what it was loaded as.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from .errors import DistillError
from .sections import Adapter

LORA = ".lora_"  # in the names of peft's parameters


def new_role(
    transformer: nn.Module, adapter: Adapter | None = None, targets: Sequence[str] = (), seed: int = 0
) -> nn.Module:
    """A network that starts as `transformer`, ready to be trained.

    Args:
        transformer: The teacher's; frozen.
        adapter: Train this beside shared weights; without it, a copy of them.
        targets: Ends of the names of adapted layers, unless the adapter has its own.
        seed: Of the adapter's first factor; the second is zero.

    Raises:
        DistillError: no layer that can be adapted has such a name.
    """
    if adapter is None:
        return copy.deepcopy(transformer).train().requires_grad_(True)
    return _with_lora(twin(transformer), adapter, adapter.targets or targets, seed).train()


def twin(module: nn.Module, own: Collection[nn.Parameter] = ()) -> nn.Module:
    """A copy of `module` that shares all of its tensors but those in `own`."""
    copied = {id(parameter) for parameter in own}
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(t): t for t in tensors if id(t) not in copied})


def average_of(role: nn.Module) -> nn.Module:
    """What is trained in `role` once more, never trained itself."""
    return twin(role, trained(role).values()).requires_grad_(False)


def trained(role: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the role owns, by name: its adapter's, or all."""
    everything = dict(role.named_parameters())
    return {name: value for name, value in everything.items() if LORA in name} or everything


def require_grad(role: nn.Module, wanted: bool) -> None:
    for parameter in trained(role).values():
        parameter.requires_grad_(wanted)


def weights(role: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint has to hold: the adapter, or everything."""
    everything = role.state_dict()
    return {name: value for name, value in everything.items() if LORA in name} or everything


def merged(role: nn.Module) -> dict[str, Tensor]:
    """Weights under the transformer's own names, with the adapter added in."""
    plain = {
        name.replace(".base_layer.", "."): value
        for name, value in role.state_dict().items()
        if LORA not in name
    }
    for name, layer in role.named_modules():
        if hasattr(layer, "get_delta_weight"):
            plain[f"{name}.weight"] = plain[f"{name}.weight"] + layer.get_delta_weight("default")
    return plain


def _with_lora(role: nn.Module, adapter: Adapter, targets: Sequence[str], seed: int) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    alpha = adapter.rank if adapter.alpha is None else adapter.alpha
    config = LoraConfig(r=adapter.rank, lora_alpha=alpha, target_modules=_pattern(role, targets))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, role)
    return role


def _pattern(role: nn.Module, targets: Sequence[str]) -> str:
    """A regular expression for the adapted layers: those in blocks whose names end in a target."""
    layers = [name for name, module in role.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    ends = {re.sub(r".*blocks\.\d+\.(attn\d?\.)?", "", name) for name in layers if "blocks." in name}
    unknown = sorted(set(targets) - ends)
    if unknown or not targets:
        raise DistillError(
            f"recipe: adapter.targets: no layer is called {', '.join(unknown)}; there are {', '.join(sorted(ends))}"
        )
    return rf".*blocks\.\d+\.(attn\d?\.)?({'|'.join(map(re.escape, targets))})"
