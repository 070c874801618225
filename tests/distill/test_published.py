"""The paper's models: recipes that load, and architectures that take the published checkpoints.

Configurations are those of `distill/planning/published.yaml`; the networks are built without memory for their weights.
"""

from __future__ import annotations

import re

import diffusers
import pytest
import torch

from distill.planning.outline import Weightless, outline, published
from distill.recipe import load_recipe, shipped_recipes

SIZES: dict[str, tuple[float, int]] = {
    "sana-0.6b-512": (0.592, 548),
    "sana-1.6b-512": (1.604, 396),
    "sana-sprint-0.6b-1024": (0.592, 660),
    "sana-sprint-1.6b-1024": (1.605, 476),
    "sd3-medium": (2.028, 683),
    "sd3.5-medium": (2.243, 909),
    "sd3.5-large": (8.057, 1227),
    "flux.1-dev-512": (11.901, 1160),
}
"""Parameters in billions, tensors in the state dict."""

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


ENCODERS_AND_AUTOENCODERS = {
    "sana-0.6b-512": {"text_encoder": 2.614, "vae": 0.312},
    "sd3-medium": {"text_encoder": 0.124, "text_encoder_2": 0.695, "text_encoder_3": 4.762, "vae": 0.084},
    "flux.1-dev-512": {"text_encoder": 0.123, "text_encoder_2": 4.762, "vae": 0.084},
}


def billions_of(module: torch.nn.Module) -> float:
    return sum(each.numel() for each in module.parameters()) / 1e9


@pytest.mark.parametrize("name", SIZES)
def test_a_published_checkpoint_fits(name: str) -> None:
    billions, tensors = SIZES[name]
    library, kind, configuration = published()[load_recipe(name).teacher]["transformer"]
    assert library == "diffusers"
    with torch.device("meta"):
        network = getattr(diffusers, kind).from_config(configuration)
    weights = network.state_dict()
    assert billions_of(network) == pytest.approx(billions, abs=5e-4)
    assert len(weights) == tensors
    shapes = {key: tuple(weights[key].shape) for key in NAMES[name] if key in weights}
    assert shapes == NAMES[name]
    assert ABSENT.get(name) not in weights


@pytest.mark.parametrize("name", ENCODERS_AND_AUTOENCODERS)
def test_what_else_a_published_pipeline_holds(name: str) -> None:
    with Weightless():
        components = outline(load_recipe(name).teacher).modules.components
        sizes = {part: billions_of(components[part]) for part in ENCODERS_AND_AUTOENCODERS[name]}
    assert sizes == pytest.approx(ENCODERS_AND_AUTOENCODERS[name], abs=5e-4)


def test_every_model_of_the_paper_has_a_recipe() -> None:
    assert {*SIZES, "flux.1-dev-1024"} <= set(shipped_recipes())


@pytest.mark.parametrize("name", [*SIZES, "flux.1-dev-1024"])
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
