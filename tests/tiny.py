"""Tiny pipelines of the stock classes with random weights, one for each architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from distill.shapes.architectures import new_transformer
from distill.shapes.autoencoder import new_autoencoder
from distill.shapes.text import new_text_encoder, new_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!"
CLIP_LENGTH, T5_LENGTH = 16, 24
T5_WIDTH = 32
SIDE = 64


def clip_tokenizer() -> CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CLIP_LENGTH)


def clip(width: int, kind: type[Any] = CLIPTextModelWithProjection) -> Any:
    config = CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config)


def t5_tokenizer() -> T5TokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in "▁" + LETTERS)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=4 + len(LETTERS),
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def kl_autoencoder() -> AutoencoderKL:
    """As of SD3 and FLUX: 16 channels, a scale and a shift, no quantisation convolutions."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=16,
        layers_per_block=1,
        sample_size=SIDE,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def sd3(with_t5: bool = True, **changes: Any) -> DiffusionPipeline:
    """SD3-Medium: no qk-norm, no dual attention."""
    settings = {
        "sample_size": SIDE // 8,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": T5_WIDTH,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8 + 12,
        "pos_embed_max_size": 12,
    }
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**{**settings, **changes}),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_autoencoder(),
        text_encoder=clip(8),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(12),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5() if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )


def sd35_medium() -> DiffusionPipeline:
    return sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def sd35_large() -> DiffusionPipeline:
    """Also its few-step Turbo, whose configuration is the same."""
    return sd3(qk_norm="rms_norm")


def sd3_without_t5() -> DiffusionPipeline:
    return sd3(with_t5=False)


def flux(guidance_embeds: bool = True) -> DiffusionPipeline:
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=12,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15
        ),
        vae=kl_autoencoder(),
        text_encoder=clip(12, CLIPTextModel),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


def flux_schnell() -> DiffusionPipeline:
    pipeline = flux(guidance_embeds=False)
    pipeline.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
    return pipeline


def sana() -> DiffusionPipeline:
    return SanaPipeline(
        tokenizer=new_tokenizer(),
        text_encoder=new_text_encoder(layers=1),
        vae=new_autoencoder(),
        transformer=new_transformer(width=32, layers=1),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def sana_sprint() -> DiffusionPipeline:
    """A TrigFlow teacher: its network has no guidance input, unlike the few-step model's."""
    parts = sana().components
    return SanaSprintPipeline(**{**parts, "scheduler": SCMScheduler()})


def sana_sprint_few_step() -> DiffusionPipeline:
    """SANA-Sprint itself: with the guidance input."""
    pipeline = sana_sprint()
    network = pipeline.transformer
    pipeline.register_modules(transformer=type(network).from_config(network.config, guidance_embeds=True))
    return pipeline


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sana": sana,
    "sana-sprint": sana_sprint,
    "sana-sprint-few-step": sana_sprint_few_step,
    "sd3": sd3,
    "sd3.5": sd35_medium,
    "sd3.5-large": sd35_large,
    "sd3-without-t5": sd3_without_t5,
    "flux": flux,
    "flux-schnell": flux_schnell,
}


def new_pipeline(name: str) -> DiffusionPipeline:
    torch.manual_seed(0)
    return PIPELINES[name]()
