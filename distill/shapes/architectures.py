"""What the tiny teacher of each family is built from: the stock classes, at a thousandth of the size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from .fit import Schedule
from .text import (
    CLIP_WIDTH,
    T5_WIDTH,
    new_clip,
    new_clip_tokenizer,
    new_t5,
    new_t5_tokenizer,
    new_text_encoder,
    new_tokenizer,
)


@dataclass(frozen=True)
class Architecture:
    """A family's teacher before its training.

    Attributes:
        autoencoder: Its class in diffusers.
        build: (autoencoder) -> the pipeline with random weights.
        schedule: Length and pace of the flow-matching training.
        guidance: Of the training that moves classifier-free guidance into the network's guidance
            input, where it has one.
        bfloat16: Whether the training runs under autocast.
    """

    autoencoder: str
    build: Callable[[Any], Any]
    schedule: Schedule
    guidance: Schedule | None = None
    bfloat16: bool = True

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)


def new_transformer(width: int = 160, layers: int = 6) -> SanaTransformer2DModel:
    heads = {"num_attention_heads": width // 32, "num_cross_attention_heads": width // 32}
    return SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        **heads,
        attention_head_dim=32,
        cross_attention_head_dim=32,
        cross_attention_dim=width,
        caption_channels=128,
        num_layers=layers,
        sample_size=8,
        patch_size=2,
    )


def sana(vae: Any) -> SanaPipeline:
    transformer, text_encoder = new_transformer(), new_text_encoder()
    return SanaPipeline(
        tokenizer=new_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def sd3(vae: Any, width: int = 112, layers: int = 5) -> StableDiffusion3Pipeline:
    """As the medium model of 3.5: qk-norm everywhere, dual attention in the first half."""
    clip_tokenizer, t5_tokenizer = new_clip_tokenizer(), new_t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=width // 16,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=2 * CLIP_WIDTH,
        pos_embed_max_size=8,
        dual_attention_layers=tuple(range(layers // 2)),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=new_clip(len(clip_tokenizer), projected=True),
        tokenizer=clip_tokenizer,
        text_encoder_2=new_clip(len(clip_tokenizer), projected=True),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=new_t5(len(t5_tokenizer)),
        tokenizer_3=t5_tokenizer,
    )


def flux(vae: Any, width: int = 96, layers: tuple[int, int] = (3, 5)) -> FluxPipeline:
    """As the dev model: double blocks, then single ones, and a guidance input."""
    clip_tokenizer, t5_tokenizer = new_clip_tokenizer(), new_t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=32,
        num_layers=layers[0],
        num_single_layers=layers[1],
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=new_clip(len(clip_tokenizer), projected=False),
        tokenizer=clip_tokenizer,
        text_encoder_2=new_t5(len(t5_tokenizer)),
        tokenizer_2=t5_tokenizer,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "sana": Architecture(
        "AutoencoderDC",
        sana,
        Schedule(steps=7000, batch=64, lr=1.2e-3, warmup=200, ema=0.999),
        bfloat16=False,
    ),
    "sd3": Architecture(
        "AutoencoderKL", sd3, Schedule(steps=9000, batch=64, lr=1.5e-3, warmup=200, ema=0.999)
    ),
    "flux": Architecture(
        "AutoencoderKL",
        flux,
        Schedule(steps=10000, batch=64, lr=1.5e-3, warmup=200, ema=0.999),
        guidance=Schedule(steps=800, batch=64, lr=5e-4, warmup=50, ema=0.99),
    ),
}
