"""The picture autoencoders of the shapes world: 64x64x3 <-> 8x8 latents of 8 channels, an `AutoencoderDC`
for SANA and an `AutoencoderKL` for SD3 and FLUX.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor

from .fit import Schedule, fit
from .render import SIZE, Images, render_all
from .scenes import SceneSet

LATENT_NOISE = 0.1  # share of the latents' spread; teaches the decoder to bear a generator's small errors
LATENT_DECAY = 1e-4
KL_WEIGHT = 2e-3  # of the divergence per latent


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


def new_kl_autoencoder() -> AutoencoderKL:
    """As of SD3 and FLUX: a scale and a shift, no convolutions around the latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        norm_num_groups=8,
        latent_channels=8,
        layers_per_block=1,
        sample_size=SIZE,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _latents(model: AutoencoderDC | AutoencoderKL, pictures: Tensor) -> Tensor:
    found = model.encode(pictures)
    latents: Tensor = found.latent if isinstance(model, AutoencoderDC) else found.latent_dist.mode()
    return latents


def train_autoencoder(
    out: Path, seed: int = 0, schedule: Schedule | None = None, kind: str = "AutoencoderDC"
) -> AutoencoderDC | AutoencoderKL:
    """Trains on fresh renders and saves to `out`, latents scaled to unit variance by its config.

    Args:
        kind: `AutoencoderDC` for SANA, `AutoencoderKL` for SD3 and FLUX.
    """
    torch.manual_seed(seed)
    wanted = KINDS[kind]
    model = wanted.new()
    scenes = SceneSet("train")

    def loss(rng: np.random.Generator, batch: int) -> Tensor:
        pictures = to_tensor(render_all(scenes.draw(rng, batch), rng))
        with torch.autocast("cpu", torch.bfloat16, enabled=wanted.bfloat16):
            noisy, regularisation = wanted.noised(model, pictures)
            error = model.decode(noisy).sample.float() - pictures
        total: Tensor = error.square().mean() + 0.1 * error.abs().mean()
        return total + regularisation

    checkpoint = out.with_suffix(".checkpoint")
    fit("autoencoder", model, loss, schedule or wanted.schedule, seed, checkpoint)
    model.register_to_config(**_scaling(model, scenes))
    model.save_pretrained(out)
    checkpoint.unlink(missing_ok=True)
    return model


def _noised_dc(model: AutoencoderDC, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Latents with a little noise, and their decay."""
    latents = model.encode(pictures).latent
    noisy = latents + LATENT_NOISE * latents.detach().std() * torch.randn_like(latents)
    return noisy, LATENT_DECAY * latents.square().mean()


def _noised_kl(model: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """A sample of the posterior, and the posterior's divergence from a standard normal."""
    posterior = model.encode(pictures).latent_dist
    sample: Tensor = posterior.sample()
    return sample, KL_WEIGHT * posterior.kl().mean() / sample[0].numel()


class Kind(NamedTuple):
    new: Callable[[], Any]
    noised: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    """(model, pictures) -> latents with a little noise, and what keeps the latents small."""
    bfloat16: bool
    schedule: Schedule


KINDS = {
    "AutoencoderDC": Kind(
        new_autoencoder, _noised_dc, False, Schedule(steps=2000, batch=16, lr=2e-3, warmup=50, ema=0.995)
    ),
    "AutoencoderKL": Kind(
        new_kl_autoencoder, _noised_kl, True, Schedule(steps=2000, batch=24, lr=2e-3, warmup=50, ema=0.995)
    ),
}


@torch.no_grad()
def _scaling(model: AutoencoderDC | AutoencoderKL, scenes: SceneSet) -> dict[str, float]:
    """The settings by which `encode` gives unit variance, and no mean where there is a shift."""
    rng = np.random.default_rng(1)
    latents = _latents(model, to_tensor(render_all(scenes.draw(rng, 512), rng)))
    scale = {"scaling_factor": round(1 / float(latents.std()), 5)}
    return (
        scale
        if isinstance(model, AutoencoderDC)
        else {**scale, "shift_factor": round(float(latents.mean()), 5)}
    )
