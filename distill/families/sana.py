"""SANA: linear-attention transformer, DC-AE latents, one decoder-only text encoder (Gemma 2).

SANA-Sprint's teachers are the same network behind a TrigFlow wrapper. The wrapper is exact: with
tan(theta) = t / (1 - t), s = sqrt(t^2 + (1 - t)^2) and latents in units of sigma_data,

    x_trig = x_rf / s,    v_trig = ((1 - 2t) x_rf + (1 - 2t + 2t^2) F(x_rf, t)) / s

and this is the TrigFlow velocity just if F = E[eps - x0 | x_rf]. So the raw transformer is a
rectified-flow network that is told t itself instead of 1000 t, and nothing else differs.

The few-step SANA-Sprint is that network with a guidance input besides. Its sampler (SCM) goes on from
a clean estimate D to the angle theta' as cos(theta') D + sin(theta') z with new noise z; times s' this
is (1 - t') D + t' z. So it is the re-noising loop of SiD at the levels that its angles stand for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..spec import TextSpec
from .base import Conditioning, Family, Text, Tokens


def embed(text_encoders: Sequence[Any], tokens: Tokens, text: Text) -> Conditioning:
    mask = tokens["attention_mask"]
    states = text_encoders[0](tokens["input_ids"], attention_mask=mask)[0]
    return {
        "prompt_embeds": _without_instruction(states, text[0].kept),
        "prompt_attention_mask": _without_instruction(mask, text[0].kept),
    }


def _without_instruction(tokens_BL: Tensor, kept: int | None) -> Tensor:
    """The first token and the last `kept` - 1, as the stock pipeline selects them."""
    if kept is None:
        return tokens_BL
    return torch.cat([tokens_BL[:, :1], tokens_BL[:, 1 - kept :]], dim=1)


def velocity(transformer: Any, x_BCHW: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
    v_BCHW: Tensor = transformer(
        x_BCHW,
        encoder_hidden_states=conditioning["prompt_embeds"],
        encoder_attention_mask=conditioning["prompt_attention_mask"],
        timestep=time_B,
        guidance=_guidance(transformer.config, conditioning),
        return_dict=False,
    )[0]
    return v_BCHW[:, : x_BCHW.shape[1]]  # checkpoints with a learned variance carry it in further channels


def _guidance(config: Any, conditioning: Conditioning) -> Tensor | None:
    """Of SANA-Sprint: the scale in the network's own units, a tenth of it."""
    return conditioning["guidance"] * config.guidance_embeds_scale if config.guidance_embeds else None


def decode(vae: Any, x0_BCHW: Tensor) -> Tensor:
    pictures: Tensor = vae.decode(x0_BCHW / vae.config.scaling_factor, return_dict=False)[0]
    return pictures


def encode(vae: Any, pictures_BCHW: Tensor) -> Tensor:
    latents: Tensor = vae.encode(pictures_BCHW, return_dict=False)[0] * vae.config.scaling_factor
    return latents


def instruction() -> str:
    """The "complex human instruction" of SANA's training, as stock diffusers has it."""
    from diffusers import SanaPipeline

    parameters = inspect.signature(SanaPipeline.__call__).parameters
    return "\n".join(parameters["complex_human_instruction"].default)


def stock_arguments(text: Text) -> Mapping[str, object]:
    prefix = text[0].template.removesuffix("{prompt}")
    return {
        "use_resolution_binning": False,
        "complex_human_instruction": prefix.split("\n") if prefix else None,
    }


SANA = Family(
    name="sana",
    pipeline="SanaPipeline",
    text=(TextSpec(max_length=300, lowercase=True),),
    time_scale=1000.0,
    text_encoders=("text_encoder",),
    embed=embed,
    velocity=velocity,
    decode=decode,
    encode=encode,
    stock_arguments=stock_arguments,
    aliases=("SiDSanaPipeline",),
    instruction=instruction,
    adapted=("to_q", "to_k", "to_v", "to_out.0", "ff.conv_inverted", "ff.conv_point"),
)
SANA_SPRINT = replace(
    SANA, name="sana-sprint", time_scale=1.0, aliases=("SanaSprintPipeline", *SANA.aliases), trigflow=True
)
