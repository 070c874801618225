"""The student as stock diffusers runs it: what the graphs are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distill.families import Family, tokenize, with_guidance
from distill.spec import GeneratorSpec

from ..runtime.base import Conditioning, Floats, Images
from ..runtime.graphs import to_images


@dataclass(frozen=True)
class TorchNetworks:
    """`Networks` of a loaded pipeline, in PyTorch."""

    family: Family
    spec: GeneratorSpec
    pipeline: Any

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        tokenizers = [getattr(self.pipeline, text.tokenizer) for text in self.spec.text]
        tokens = tokenize(tokenizers, self.spec.text, prompts)
        conditioning = self.family.embed(self.family.encoders(self.pipeline), tokens, self.spec.text)
        return {name: value.numpy() for name, value in conditioning.items()}

    @torch.inference_mode()
    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        tensors = {name: torch.from_numpy(value) for name, value in conditioning.items()}
        named = with_guidance(tensors, self.spec.guidance_embedding)
        time_B = self.spec.time_scale * torch.from_numpy(t_B)
        v_BCHW = self.family.velocity(self.pipeline.transformer, torch.from_numpy(x_BCHW), time_B, named)
        velocity: Floats = v_BCHW.numpy()
        return velocity

    def decode(self, x0_BCHW: Floats) -> Images:
        return to_images(self.decode_floats(x0_BCHW))

    @torch.inference_mode()
    def decode_floats(self, x0_BCHW: Floats) -> Floats:
        """Clean latents -> pictures [B, 3, H, W] in -1 ... 1, not clipped."""
        pictures: Floats = self.family.decode(self.pipeline.vae, torch.from_numpy(x0_BCHW)).numpy()
        return pictures
