"""The paper's models: recipes that load, and architectures that take the published checkpoints.

Configurations are those of the teachers' `transformer/config.json`; the networks are built without
memory for their weights.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SanaTransformer2DModel, SD3Transformer2DModel
from torch import nn

from distill.recipe import load_recipe, shipped_recipes

SANA_600M = {
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
}
SANA_1600M = {
    **SANA_600M,
    "num_attention_heads": 70,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
}
SPRINT = {"sample_size": 32, "qk_norm": "rms_norm_across_heads"}
SD3_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
SD35_MEDIUM = {
    **SD3_MEDIUM,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
SD35_LARGE = {
    **SD3_MEDIUM,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
FLUX_DEV = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}

Model = tuple[type[nn.Module], dict[str, Any], float, int]
"""Class, configuration, parameters in billions, tensors in the state dict."""

MODELS: dict[str, Model] = {
    "sana-0.6b-512": (SanaTransformer2DModel, {**SANA_600M, "sample_size": 16}, 0.592, 548),
    "sana-1.6b-512": (SanaTransformer2DModel, {**SANA_1600M, "sample_size": 16}, 1.604, 396),
    "sana-sprint-0.6b-1024": (SanaTransformer2DModel, {**SANA_600M, **SPRINT}, 0.592, 660),
    "sana-sprint-1.6b-1024": (SanaTransformer2DModel, {**SANA_1600M, **SPRINT}, 1.605, 476),
    "sd3-medium": (SD3Transformer2DModel, SD3_MEDIUM, 2.028, 683),
    "sd3.5-medium": (SD3Transformer2DModel, SD35_MEDIUM, 2.243, 909),
    "sd3.5-large": (SD3Transformer2DModel, SD35_LARGE, 8.057, 1227),
    "flux.1-dev-512": (FluxTransformer2DModel, FLUX_DEV, 11.901, 1160),
}

NAMES: dict[str, dict[str, tuple[int, ...]]] = {
    "sana-0.6b-512": {
        "patch_embed.proj.weight": (1152, 32, 1, 1),
        "time_embed.emb.timestep_embedder.linear_1.weight": (1152, 256),
        "transformer_blocks.27.attn2.to_k.weight": (1152, 1152),
        "transformer_blocks.27.ff.conv_depth.weight": (5760, 1, 3, 3),
    },
    "sana-1.6b-512": {
        "caption_projection.linear_1.weight": (2240, 2304),
        "transformer_blocks.19.attn1.to_q.weight": (2240, 2240),
    },
    "sana-sprint-0.6b-1024": {"transformer_blocks.27.attn2.norm_q.weight": (1152,)},
    "sana-sprint-1.6b-1024": {"transformer_blocks.19.attn1.norm_k.weight": (2240,)},
    "sd3-medium": {
        "pos_embed.pos_embed": (1, 192 * 192, 1536),
        "context_embedder.weight": (1536, 4096),
        "time_text_embed.text_embedder.linear_1.weight": (1536, 2048),
        "transformer_blocks.22.attn.to_add_out.weight": (1536, 1536),
    },
    "sd3.5-medium": {
        "pos_embed.pos_embed": (1, 384 * 384, 1536),
        "transformer_blocks.12.attn2.norm_q.weight": (64,),
        "transformer_blocks.23.attn.norm_added_k.weight": (64,),
    },
    "sd3.5-large": {
        "transformer_blocks.37.attn.norm_q.weight": (64,),
        "norm_out.linear.weight": (4864, 2432),
    },
    "flux.1-dev-512": {
        "time_text_embed.guidance_embedder.linear_1.weight": (3072, 256),
        "single_transformer_blocks.37.proj_mlp.weight": (12288, 3072),
        "x_embedder.weight": (3072, 64),
    },
}
ABSENT = {
    "sana-0.6b-512": "transformer_blocks.0.attn1.norm_q.weight",
    "sana-sprint-0.6b-1024": "time_embed.guidance_embedder.linear_1.weight",
    "sd3-medium": "transformer_blocks.0.attn.norm_q.weight",
    "sd3.5-medium": "transformer_blocks.13.attn2.to_q.weight",
    "sd3.5-large": "transformer_blocks.0.attn2.to_q.weight",
}


@pytest.mark.parametrize("name", MODELS)
def test_a_published_checkpoint_fits(name: str) -> None:
    kind, configuration, billions, tensors = MODELS[name]
    with torch.device("meta"):
        network = kind(**configuration)
    weights = network.state_dict()
    assert sum(each.numel() for each in network.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    assert len(weights) == tensors
    shapes = {key: tuple(weights[key].shape) for key in NAMES[name] if key in weights}
    assert shapes == NAMES[name]
    assert ABSENT.get(name) not in weights


def test_every_model_of_the_paper_has_a_recipe() -> None:
    assert {*MODELS, "flux.1-dev-1024"} <= set(shipped_recipes())


@pytest.mark.parametrize("name", [*MODELS, "flux.1-dev-1024"])
def test_a_recipe_of_the_paper_is_the_published_run(name: str) -> None:
    recipe = load_recipe(name)
    assert re.fullmatch(r"[\w-]+/[\w.-]+", recipe.teacher)
    assert (recipe.steps, recipe.batch, recipe.alpha, recipe.precision) == (4, 256, 1.0, "bfloat16")
    assert (recipe.optimizer.lr_generator, recipe.optimizer.lr_fake) == (5e-6, 5e-6)
    assert (recipe.weighting, recipe.ema) == ("1_minus_sigma", None)
    flux = name.startswith("flux")
    kappas = recipe.guidance
    expected = (1.0,) * 4 if flux else (4.5,) * 4
    assert (kappas.fake_train, kappas.fake_outer, kappas.fake_inner, kappas.teacher) == expected
    assert recipe.time_scale == (1.0 if "sprint" in name else None)
    assert recipe.text.instruction is name.startswith("sana")
    if not name.startswith("sana"):
        assert recipe.size is not None
        assert recipe.text.length == (512 if flux else 77)
