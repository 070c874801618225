"""Tiny encoders of the stock classes with random weights, and a feature network in TorchScript."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from .tiny import CLIP_LENGTH, LETTERS, clip_tokenizer

SIDE = 32
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PICTURE = {"image_size": SIDE, "patch_size": 8}
DIMENSIONS = {"clip": 8, "vit": 16, "dinov2": 16, "resnet": 6}


def new_clip() -> CLIPModel:
    text = {
        "vocab_size": 2 + 2 * len(LETTERS),
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return CLIPModel(
        CLIPConfig(text_config={**SMALL, **text}, vision_config={**SMALL, **PICTURE}, projection_dim=8)
    )


def new_resnet() -> ResNetModel:
    return ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic"))


ENCODERS = {
    "clip": new_clip,
    "vit": lambda: ViTModel(ViTConfig(**SMALL, **PICTURE)),
    "vit-classifier": lambda: ViTForImageClassification(ViTConfig(**SMALL, **PICTURE)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL, **PICTURE)),
    "resnet": new_resnet,
}


def save_encoder(name: str, folder: Path, seed: int = 0) -> Path:
    """A folder as it is published: weights, and how pictures (and texts) are prepared."""
    torch.manual_seed(seed)
    ENCODERS[name]().save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(folder)
    if name == "clip":
        clip_tokenizer().save_pretrained(folder)
    return folder


class Colours(nn.Module):
    """Features are the mean colour and its square; without `return_features` classes, as of Inception."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        assert img.dtype == torch.uint8
        mean = img.float().mean((2, 3)) / 255
        return torch.cat([mean, mean**2], 1) if return_features else mean.argmax(1)


class Halves(nn.Module):
    """Says nothing of features: gives them at once, as a map of 1 x 2 positions."""

    def forward(self, img: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(img.float(), (1, 2))


class Floats(nn.Module):
    """Takes pictures as floating-point numbers alone."""

    def forward(self, img: Tensor) -> Tensor:
        return nn.functional.conv2d(img, torch.ones(1, 3, 1, 1))


class Pair(nn.Module):
    def forward(self, img: Tensor) -> tuple[Tensor, Tensor]:
        return img, img


def save_script(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(path)
    return path
