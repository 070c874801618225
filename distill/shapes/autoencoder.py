"""The picture autoencoder of the shapes world: a small `AutoencoderDC`, 64x64x3 <-> 8x8x8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from torch import Tensor

from .fit import Schedule, fit
from .render import Images, render_all
from .scenes import SceneSet

LATENT_NOISE = 0.1  # share of the latents' spread; teaches the decoder to bear a generator's small errors
LATENT_DECAY = 1e-4

SCHEDULE = Schedule(steps=2000, batch=16, lr=2e-3, warmup=50, ema=0.995)


def to_tensor(images: Images) -> Tensor:
    """uint8 [N, H, W, 3] -> float [N, 3, H, W] in -1 ... 1."""
    return torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def new_autoencoder() -> AutoencoderDC:
    """Residual blocks at 32 and 16 pixels, EfficientViT blocks (linear attention) at 8, as in DC-AE."""
    blocks = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")
    channels, layers, scales = (16, 32, 64, 128), (0, 1, 1, 1), ((), (), (), (5,))
    return AutoencoderDC(
        latent_channels=8,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
    )


def train_autoencoder(out: Path, seed: int = 0, schedule: Schedule = SCHEDULE) -> AutoencoderDC:
    """Trains on fresh renders and saves to `out`, latents scaled to unit variance by its config."""
    torch.manual_seed(seed)
    model = new_autoencoder()
    scenes = SceneSet("train")

    def loss(rng: np.random.Generator, batch: int) -> Tensor:
        pictures = to_tensor(render_all(scenes.draw(rng, batch), rng))
        latents = model.encode(pictures).latent
        noisy = latents + LATENT_NOISE * latents.detach().std() * torch.randn_like(latents)
        error = model.decode(noisy).sample - pictures
        total: Tensor = error.square().mean() + 0.1 * error.abs().mean()
        total += LATENT_DECAY * latents.square().mean()
        return total

    fit("autoencoder", model, loss, schedule, seed, out.with_suffix(".checkpoint"))
    model.register_to_config(scaling_factor=_scaling_factor(model, scenes))
    model.save_pretrained(out)
    return model


@torch.no_grad()
def _scaling_factor(model: AutoencoderDC, scenes: SceneSet) -> float:
    rng = np.random.default_rng(1)
    pictures = to_tensor(render_all(scenes.draw(rng, 512), rng))
    return round(1 / float(model.encode(pictures).latent.std()), 5)
