"""Trains the SANA-family teacher of the shapes world: flow matching, text encoder trained jointly.

The result is a stock `SanaPipeline` folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Gemma2Model

from ..files import atomic_folder
from ..pipeline import forget_paths, quiet
from ..progress import progress
from .autoencoder import to_tensor
from .fit import Schedule, fit
from .render import render_all
from .scenes import ATTRIBUTES, Scene, SceneSet, captions
from .text import new_text_encoder, new_tokenizer

SCHEDULE = Schedule(steps=7000, batch=64, lr=1.2e-3, warmup=200, ema=0.999)
TRAINING_PICTURES = 50_000
CAPTION_LENGTH = 16  # tokens; the longest caption has 14
TEXT_DROPOUT = 0.1  # share of empty captions, for classifier-free guidance
READING_WEIGHT = 0.05  # of the auxiliary loss that has the text encoder name the scene's attributes


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


class Trainee(nn.Module):
    """Transformer and text encoder, and a reading head that exists during training only."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = new_transformer()
        self.text_encoder = new_text_encoder()
        self.reader = nn.Linear(128, sum(len(values) for values in ATTRIBUTES.values()))


class Corpus:
    """Captioned pictures of the training split, encoded once."""

    def __init__(self, vae: AutoencoderDC, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng((seed, 0xC0))
        scenes = SceneSet("train").draw(rng, count)
        tokenizer = new_tokenizer()
        length = {"padding": "max_length", "max_length": CAPTION_LENGTH, "return_tensors": "pt"}
        self.ids = tokenizer(captions(scenes), **length).input_ids
        self.empty = tokenizer([""], **length).input_ids[0]
        self.pad = tokenizer.pad_token_id
        self.labels = torch.tensor([scene.labels for scene in scenes])
        self.latents = torch.cat(list(_encode(vae, scenes, rng)))

    def draw(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents [B, 8, 8, 8], token ids [B, L] (some emptied), labels [B, 6], captioned [B]."""
        index = torch.from_numpy(rng.integers(len(self.ids), size=batch))
        captioned = torch.from_numpy(rng.random(batch) >= TEXT_DROPOUT)
        ids = torch.where(captioned[:, None], self.ids[index], self.empty)
        return self.latents[index], ids, self.labels[index], captioned


@torch.no_grad()
def _encode(vae: AutoencoderDC, scenes: Sequence[Scene], rng: np.random.Generator) -> Iterator[Tensor]:
    with progress("encoding pictures", len(scenes)) as shown:
        for start in range(0, len(scenes), 100):
            pictures = to_tensor(render_all(scenes[start : start + 100], rng))
            yield vae.encode(pictures).latent * vae.config.scaling_factor
            shown.update(min(start + 100, len(scenes)))


def train_teacher(autoencoder: Path, out: Path, seed: int = 0, schedule: Schedule = SCHEDULE) -> None:
    """Trains the teacher on the latents of `autoencoder` and saves the pipeline to `out`."""
    torch.manual_seed(seed)
    vae = AutoencoderDC.from_pretrained(autoencoder).eval()
    model = Trainee()
    corpus = Corpus(vae, TRAINING_PICTURES, seed)

    def loss(rng: np.random.Generator, batch: int) -> Tensor:
        x0, ids, labels, captioned = corpus.draw(rng, batch)
        mask = (ids != corpus.pad).long()
        text = model.text_encoder(ids, attention_mask=mask)[0]
        t = torch.sigmoid(1.2 * torch.randn(batch))
        eps = torch.randn_like(x0)
        x_t = torch.lerp(x0, eps, t[:, None, None, None])
        v = model.transformer(x_t, text, timestep=1000 * t, encoder_attention_mask=mask).sample
        flow: Tensor = (v - (eps - x0)).square().mean()
        return flow + READING_WEIGHT * _reading_loss(model.reader(_last(text, mask)), labels, captioned)

    with sdpa_kernel(SDPBackend.MATH):  # the fused CPU kernel's backward is slow at these sizes
        fit("teacher", model, loss, schedule, seed, out.with_suffix(".checkpoint"))
    _save(model, vae, out)


def _last(text: Tensor, mask: Tensor) -> Tensor:
    """The state of each caption's last token, which has seen the whole caption."""
    return text[torch.arange(len(text)), mask.sum(1) - 1]


def _reading_loss(logits: Tensor, labels: Tensor, captioned: Tensor) -> Tensor:
    heads = logits.split([len(values) for values in ATTRIBUTES.values()], dim=1)
    each = [F.cross_entropy(head, label, reduction="none") for head, label in zip(heads, labels.T)]
    return (torch.stack(each).mean(0) * captioned).mean()


def _save(model: Trainee, vae: AutoencoderDC, out: Path) -> None:
    """Large parts in half precision: it halves the folder, and stock diffusers loads them as float32."""
    text_encoder: Gemma2Model = model.text_encoder
    quiet()
    pipeline = SanaPipeline(
        tokenizer=new_tokenizer(),
        text_encoder=text_encoder,
        vae=vae.half(),
        transformer=model.transformer.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    with atomic_folder(out) as folder:
        pipeline.save_pretrained(folder)
        forget_paths(folder)
