"""Attention and positions that survive the ONNX exporter: same weights, same results, other arithmetic.

Four things go wrong with the stock modules. The exporter's optimiser drops `+ 1e-15`, so the guard of
linear attention vanishes and a token whose query is all zero becomes 0 / 0; a clamp survives. And
SANA's cross attention folds batch and heads of its mask in a way that symbolic shapes cannot undo; a
mask that broadcasts does not need it. FLUX computes its rotary frequencies in double precision at every
call; they are constants. Stable Diffusion 3 crops its table of positions from (size - height) // 2 on, which
becomes the half of a negative number; that ONNX rounds towards zero and Python downwards, so odd heights fail.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    SanaLinearAttnProcessor2_0,
    SanaMultiscaleLinearAttention,
)
from diffusers.models.embeddings import PatchEmbed
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from torch import Tensor, nn

GUARD = 1e-15
M = TypeVar("M", bound=nn.Module)


def exportable(module: M) -> M:
    """A copy of `module` that shares its weights and exports right."""
    shared = {id(weight): weight for weight in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared)
    for part in twin.modules():
        if isinstance(part, Attention) and type(part.processor) in REPLACEMENTS:
            part.processor = REPLACEMENTS[type(part.processor)]
        elif isinstance(part, SanaMultiscaleLinearAttention):
            part.apply_linear_attention = MethodType(_multiscale_linear, part)
            part.apply_quadratic_attention = MethodType(_multiscale_quadratic, part)
        elif isinstance(part, FluxPosEmbed):
            part.forward = MethodType(rotary_positions, part)
        elif isinstance(part, PatchEmbed) and part.pos_embed_max_size:
            part.cropped_pos_embed = MethodType(cropped_positions, part)
    return twin


def linear_attention(query_BHDN: Tensor, key_BHDN: Tensor, value_BHDN: Tensor) -> Tensor:
    """Attention [B, H, D, N] with a kernel in place of the softmax; a zero query reads zero."""
    ones = F.pad(value_BHDN.float(), (0, 0, 0, 1), value=1.0)
    sums = ones @ key_BHDN.float().transpose(-1, -2) @ query_BHDN.float()
    return sums[:, :, :-1] / sums[:, :, -1:].clamp_min(GUARD)


def sana_self_attention(
    attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
) -> Tensor:
    query, key, value = _project(attn, hidden_states, encoder_hidden_states)
    split = (attn.heads, -1)
    heads_first = [torch.unflatten(part.transpose(1, 2), 1, split) for part in (query, key, value)]
    read = linear_attention(F.relu(heads_first[0]), F.relu(heads_first[1]), heads_first[2])
    return _leave(attn, read.flatten(1, 2).transpose(1, 2).to(hidden_states.dtype))


def sana_cross_attention(
    attn: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """`attention_mask` is a bias [B, 1, S], added to the scores of every query."""
    projected = _project(attn, hidden_states, encoder_hidden_states)
    query, key, value = (torch.unflatten(part, 2, (attn.heads, -1)).transpose(1, 2) for part in projected)
    bias = None
    if attention_mask is not None:
        bias = attention_mask[:, None].expand(-1, 1, hidden_states.shape[1], -1).to(query.dtype)
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    left: Tensor = _leave(attn, read.transpose(1, 2).flatten(2)) / attn.rescale_output_factor
    return left


def rotary_positions(embedding: Any, ids_NA: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, D] of the angles of each token's A coordinates, each angle twice."""
    angles = [
        ids_NA[:, axis, None].float() * _frequencies(embedding.theta, width).to(ids_NA.device)
        for axis, width in enumerate(embedding.axes_dim)
    ]
    angles_ND = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
    return angles_ND.cos(), angles_ND.sin()


def cropped_positions(embedding: Any, height: int, width: int) -> Tensor:
    """The middle of the table of positions [1, N, C] for latents of `height` and `width`."""
    side = embedding.pos_embed_max_size
    rows, columns = height // embedding.patch_size, width // embedding.patch_size
    table = embedding.pos_embed.reshape(1, side, side, -1)
    top, left = (side // 2 - (length + 1 - side % 2) // 2 for length in (rows, columns))
    return table[:, top : top + rows, left : left + columns].reshape(1, -1, table.shape[-1])  # type: ignore[no-any-return]


def _frequencies(theta: float, width: int) -> Tensor:
    return torch.tensor([theta ** (-index / width) for index in range(0, width, 2)])


REPLACEMENTS: dict[type, Any] = {
    SanaLinearAttnProcessor2_0: sana_self_attention,
    SanaAttnProcessor2_0: sana_cross_attention,
}


def _project(attn: Any, hidden_states: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    context = hidden_states if context is None else context
    query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    return query, key, value


def _leave(attn: Any, read: Tensor) -> Tensor:
    left: Tensor = attn.to_out[1](attn.to_out[0](read))
    return left


def _multiscale_linear(_: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return linear_attention(query, key, value)


def _multiscale_quadratic(_: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = (key.transpose(-1, -2) @ query).float()
    weights = scores / scores.sum(dim=2, keepdim=True).clamp_min(GUARD)
    return value @ weights.to(value.dtype)
