"""FLUX.1: two-by-two latents in a row of tokens, rotary positions, a guidance input in the dev model.

Latents are plain [B, 16, h, w] everywhere outside `velocity`, which packs them, numbers them and
unpacks the result as the stock pipeline does. `conditioning["guidance"]` [B] is the guidance scale
that FLUX.1-dev takes as an input; it is apart from classifier-free guidance (`sid.md` 2.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import TextSpec
from .base import Conditioning, Family, Text, Tokens
from .sd3 import JOINT, decode, encode

PACKING = 2


def embed(text_encoders: Sequence[Any], tokens: Tokens, text: Text) -> Conditioning:
    clip, t5 = text_encoders
    return {
        "prompt_embeds": t5(tokens["input_ids_2"])[0],
        "pooled_projections": clip(tokens["input_ids"]).pooler_output,
    }


def velocity(transformer: Any, x_BCHW: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
    states_BLC = conditioning["prompt_embeds"]
    v_BNC: Tensor = transformer(
        hidden_states=pack(x_BCHW),
        timestep=time_B,
        guidance=conditioning["guidance"] if transformer.config.guidance_embeds else None,
        pooled_projections=conditioning["pooled_projections"],
        encoder_hidden_states=states_BLC,
        txt_ids=torch.zeros(states_BLC.shape[1], 3, device=x_BCHW.device),
        img_ids=positions(x_BCHW),
        return_dict=False,
    )[0]
    return unpack(v_BNC, x_BCHW)


def pack(x_BCHW: Tensor) -> Tensor:
    """Tokens [B, H/2 W/2, 4C], one for each square of two by two, row by row."""
    return F.pixel_unshuffle(x_BCHW, PACKING).flatten(2).transpose(1, 2)


def unpack(v_BNC: Tensor, like_BCHW: Tensor) -> Tensor:
    """The inverse of `pack`, in the shape of `like_BCHW`."""
    height, width = like_BCHW.shape[2] // PACKING, like_BCHW.shape[3] // PACKING
    squares: Tensor = v_BNC.transpose(1, 2).unflatten(2, (height, width))
    return F.pixel_shuffle(squares, PACKING)


def positions(x_BCHW: Tensor) -> Tensor:
    """(0, row, column) of each token, [H/2 W/2, 3]."""
    height, width = x_BCHW.shape[2] // PACKING, x_BCHW.shape[3] // PACKING
    row = torch.arange(height, device=x_BCHW.device)[:, None].expand(height, width)
    column = torch.arange(width, device=x_BCHW.device)[None].expand(height, width)
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1).to(x_BCHW.dtype)


def sigmas(steps: int) -> list[float]:
    """1 ... 1 / steps, which the stock pipeline hands to its scheduler to shift."""
    return torch.linspace(1, 1 / steps, steps).tolist()


FLUX = Family(
    name="flux",
    pipeline="FluxPipeline",
    text=(TextSpec(max_length=77), TextSpec(tokenizer="tokenizer_2", max_length=512)),
    time_scale=1.0,  # the network multiplies by 1000 itself
    text_encoders=("text_encoder", "text_encoder_2"),
    embed=embed,
    velocity=velocity,
    decode=decode,
    aliases=("SiDFluxPipeline",),
    encode=encode,
    packing=PACKING,
    sigmas=sigmas,
    guidance=True,
    adapted=(*JOINT, "proj_mlp", "proj_out"),
)
