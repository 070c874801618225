"""Exact accounting of tensor memory and operations, and what CUDA does otherwise than the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary


class Meter(TorchDispatchMode):
    """Counts the bytes of storages while they live, and floating-point operations.

    Works on real tensors and on fake ones, whose storages have sizes and lifetimes but no memory.
    Views, results in place and what autograd saves are counted once, by their storage. Workspaces
    inside of kernels are not seen.

    Args:
        existing: Tensors that are there already and are not to be counted.

    Attributes:
        live: Bytes allocated under the meter and not freed yet.
        peak: The most that have been live since the last `restart`.
        flops: Operations since then; an addition and a multiplication are two (`torch.utils.flop_counter`).
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.flops = 0
        self._known = WeakIdKeyDictionary()
        for tensor in existing:
            self._known[tensor.untyped_storage()] = True

    def restart(self) -> None:
        self.peak, self.flops = self.live, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = True
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *others: Any, out_val: Any) -> int:
    """The gradients of input and weight, as far as they are wanted, take what the forward pass took.

    PyTorch's own formula forgets the groups, which for depthwise convolutions is a factor of thousands.
    """
    transposed = others[4]
    positions = prod((x if transposed else grad).shape[2:])
    wanted = sum(each is not None for each in out_val[:2])
    return 2 * wanted * len(x) * positions * weight.numel()


FORMULAS: dict[Any, Any] = {**flop_registry, torch.ops.aten.convolution_backward: _convolution_backward}


class LikeCuda(TorchFunctionMode):
    """Makes the CPU's operators keep for the backward pass what CUDA's keep.

    Attention is the memory-efficient kernel's, which never holds the matrix of scores, and autocast
    casts to float32 what it does on CUDA (`ATen/autocast_mode.h`; the list of the CPU is shorter).
    """

    FLOAT32 = frozenset({
        "cosine_similarity", "cumsum", "exp", "group_norm", "layer_norm", "log", "log_softmax", "mse_loss",
        "norm", "pow", "prod", "reciprocal", "rms_norm", "rsqrt", "softmax", "softplus", "sum",
    })  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _efficient_attention(*args, **kwargs)
        if getattr(func, "__name__", "") in self.FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return func(*args, **kwargs)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `scaled_dot_product_attention` calls on CUDA, where autocast lowers its inputs."""
    if torch.is_autocast_enabled("cpu"):
        lower = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(lower), key.to(lower), value.to(lower)
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    keep = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    result: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keep, dropout_p, is_causal, scale=scale
    )[0]
    return result
