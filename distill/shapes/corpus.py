"""What teachers are trained on: captioned pictures of the training split, encoded and tokenized once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..families import Family, Tokens, tokenize
from ..progress import progress
from .autoencoder import to_tensor
from .render import render_all
from .scenes import Scene, SceneSet, captions
from .text import CAPTION_LENGTH

TEXT_DROPOUT = 0.1  # share of empty captions, for classifier-free guidance


class Batch(NamedTuple):
    """Attributes:
    x0: Latents [B, C, 8, 8].
    tokens: Of each tokenizer, [B, L]; those of the empty caption where `captioned` is false.
    labels: Class index of each attribute [B, 6].
    captioned: bool [B].
    """

    x0: Tensor
    tokens: Tokens
    labels: Tensor
    captioned: Tensor


class Corpus:
    """`count` pictures; which ones depends on the seed only."""

    def __init__(self, family: Family, pipeline: Any, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng((seed, 0xC0))
        scenes = SceneSet("train").draw(rng, count)
        text = [spec.model_copy(update={"max_length": CAPTION_LENGTH}) for spec in family.text]
        tokenizers = [getattr(pipeline, spec.tokenizer) for spec in text]
        self.tokens = tokenize(tokenizers, text, captions(scenes))
        self.empty = tokenize(tokenizers, text, [""])
        self.labels = torch.tensor([scene.labels for scene in scenes])
        self.latents = torch.cat(list(_encode(family, pipeline.vae, scenes, rng)))

    def draw(self, rng: np.random.Generator, batch: int) -> Batch:
        index = torch.from_numpy(rng.integers(len(self.labels), size=batch))
        captioned = torch.from_numpy(rng.random(batch) >= TEXT_DROPOUT)
        tokens = {
            name: torch.where(captioned[:, None], ids[index], self.empty[name])
            for name, ids in self.tokens.items()
        }
        return Batch(self.latents[index], tokens, self.labels[index], captioned)


@torch.no_grad()
def _encode(family: Family, vae: Any, scenes: Sequence[Scene], rng: np.random.Generator) -> Iterator[Tensor]:
    with progress("encoding pictures", len(scenes)) as shown:
        for start in range(0, len(scenes), 100):
            yield family.encode(vae, to_tensor(render_all(scenes[start : start + 100], rng)))
            shown.update(min(start + 100, len(scenes)))
