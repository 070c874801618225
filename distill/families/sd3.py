"""Stable Diffusion 3 and 3.5: joint attention of picture and text, which is two CLIPs and T5.

Padding is attended to, so the length of T5's text is part of what a student was trained on: 77 here,
as in the released distillation code (`sid.md` 4.3), 256 by default in the stock pipeline. The
medium model of 3.5 (dual attention, qk-norm) and the large one differ in their configuration only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import TextSpec
from .base import Conditioning, Family, Text, Tokens

LENGTH = 77
JOINT = (  # layers that a LoRA changes, also in FLUX's blocks with two streams
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)


def embed(text_encoders: Sequence[Any], tokens: Tokens, text: Text) -> Conditioning:
    """CLIP's states side by side, then T5's; without T5 as many zeros as CLIP has tokens."""
    first, second, *rest = text_encoders
    read = [
        first(tokens["input_ids"], output_hidden_states=True),
        second(tokens["input_ids_2"], output_hidden_states=True),
    ]
    clip = torch.cat([one.hidden_states[-2] for one in read], dim=-1)
    t5 = rest[0](tokens["input_ids_3"])[0] if rest else torch.zeros_like(clip)
    return {
        "prompt_embeds": torch.cat([_widen(clip, t5.shape[-1]), t5], dim=1),
        "pooled_projections": torch.cat([one[0] for one in read], dim=-1),
    }


def _widen(states_BLC: Tensor, width: int) -> Tensor:
    return F.pad(states_BLC, (0, width - states_BLC.shape[-1]))


def velocity(transformer: Any, x_BCHW: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
    v_BCHW: Tensor = transformer(
        x_BCHW,
        timestep=time_B,
        encoder_hidden_states=_widen(
            conditioning["prompt_embeds"], transformer.config.joint_attention_dim
        ),  # does something without T5 only
        pooled_projections=conditioning["pooled_projections"],
        return_dict=False,
    )[0]
    return v_BCHW


def decode(vae: Any, x0_BCHW: Tensor) -> Tensor:
    """Also FLUX's: the stock pipelines of both scale and shift alike."""
    latents = x0_BCHW / vae.config.scaling_factor + vae.config.shift_factor
    pictures: Tensor = vae.decode(latents, return_dict=False)[0]
    return pictures


def encode(vae: Any, pictures_BCHW: Tensor) -> Tensor:
    """The mean of the encoder's distribution, so that a cache of latents is reproducible."""
    mean: Tensor = vae.encode(pictures_BCHW, return_dict=False)[0].mode()
    latents: Tensor = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    return latents


SD3 = Family(
    name="sd3",
    pipeline="StableDiffusion3Pipeline",
    text=(
        TextSpec(max_length=77),
        TextSpec(tokenizer="tokenizer_2", max_length=77),
        TextSpec(tokenizer="tokenizer_3", max_length=LENGTH),
    ),
    time_scale=1000.0,
    text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    embed=embed,
    velocity=velocity,
    decode=decode,
    aliases=("SiDSD3Pipeline",),
    encode=encode,
    optional=("text_encoder_3", "tokenizer_3"),
    adapted=JOINT,
)
