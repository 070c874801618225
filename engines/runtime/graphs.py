"""A generator of three functions over named arrays: what runs graphs and what runs programs have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import PARTS, SamplerSpec
from .base import Conditioning, Floats, Images
from .text import Tokenizers

Graph = Callable[[Conditioning], dict[str, Any]]
"""Named arrays -> named arrays; names that it does not know are left out."""


class GraphNetworks:
    """`Networks` of text encoder, denoiser and decoder.

    Args:
        folder: Where the tokenizers lie.
        spec: The sampler's settings.
        load: Name of a part -> its function.

    Raises:
        EngineError: the tokenizer library cannot read a file; or what `load` raises.
    """

    def __init__(self, folder: Path, spec: SamplerSpec, load: Callable[[str], Graph]) -> None:
        self.tokenize = Tokenizers(folder, spec)
        self._text_encoder, self._denoiser, self._decoder = map(load, PARTS)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self._text_encoder(self.tokenize(prompts))

    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        velocity: Floats = self._denoiser({"latents": x_BCHW, "timestep": t_B, **conditioning})["velocity"]
        return velocity

    def decode(self, x0_BCHW: Floats) -> Images:
        return to_images(self.decode_floats(x0_BCHW))

    def decode_floats(self, x0_BCHW: Floats) -> Floats:
        """Clean latents -> pictures [B, 3, H, W] in -1 ... 1, not clipped."""
        pictures: Floats = self._decoder({"latents": x0_BCHW})["pictures"]
        return pictures


def to_images(pictures_BCHW: Floats) -> Images:
    """float [B, 3, H, W] in -1 ... 1 -> uint8 [B, H, W, 3]; values outside are clipped."""
    scaled = np.rint((np.clip(pictures_BCHW, -1, 1) + np.float32(1)) * np.float32(127.5))
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))
