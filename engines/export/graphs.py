"""The three graphs of a generator, as modules over plain tensors with example inputs and axis names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.families import Conditioning, Family, Text, tokenize, with_guidance
from distill.spec import GeneratorSpec

from .attention import exportable

TRACED_BATCH = 2
"""A batch of one would be taken for a constant."""

Axes = dict[int, str]


@dataclass(frozen=True)
class Part:
    """One graph to be: a module, example inputs by name, and the names of their dynamic axes.

    Height and width of latents are multiples of `patch`.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, Axes]
    outputs: tuple[str, ...]
    patch: int = 1


class TextEncoderGraph(nn.Module):
    """Token ids and masks of all tokenizers -> conditioning."""

    def __init__(
        self, family: Family, text: Text, encoders: Sequence[nn.Module], axes: dict[str, Axes]
    ) -> None:
        super().__init__()
        self.family, self.text, self.names, self.axes = family, text, tuple(axes), tuple(axes.values())
        self.encoders = nn.ModuleList(encoders)

    def forward(self, *tokens: Tensor) -> tuple[Tensor, ...]:
        _tie(tokens, self.axes)
        named = self.family.embed(tuple(self.encoders), dict(zip(self.names, tokens)), self.text)
        return tuple(named.values())


class DenoiserGraph(nn.Module):
    """Latents, noise level in (0, 1] and conditioning -> velocity."""

    def __init__(
        self, family: Family, spec: GeneratorSpec, transformer: nn.Module, axes: dict[str, Axes]
    ) -> None:
        super().__init__()
        self.family, self.spec, self.transformer = family, spec, transformer
        self.names, self.axes = tuple(axes)[2:], tuple(axes.values())

    def forward(self, latents: Tensor, timestep: Tensor, *conditioning: Tensor) -> Tensor:
        _tie((latents, timestep, *conditioning), self.axes)
        named = with_guidance(dict(zip(self.names, conditioning)), self.spec.guidance_embedding)
        return self.family.velocity(self.transformer, latents, self.spec.time_scale * timestep, named)


class DecoderGraph(nn.Module):
    """Clean latents -> pictures [B, 3, H, W] in -1 ... 1, not clipped."""

    def __init__(self, family: Family, vae: nn.Module) -> None:
        super().__init__()
        self.family, self.vae = family, vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.family.decode(self.vae, latents)


def parts_of(family: Family, spec: GeneratorSpec, pipeline: Any) -> Iterator[Part]:
    """Text encoder, denoiser and decoder of a student, in the order in which they run.

    Nothing of a part is kept here when the next one is asked for.
    """
    text_encoder, conditioning, text_axes = _text_encoder(family, spec, pipeline)
    yield text_encoder
    del text_encoder
    yield denoiser_of(family, spec, pipeline.transformer, conditioning, text_axes)
    yield _decoder(family, spec, pipeline.vae)


def _text_encoder(
    family: Family, spec: GeneratorSpec, pipeline: Any
) -> tuple[Part, Conditioning, dict[str, Axes]]:
    """The part, what it makes of two prompts, and which axes of that follow the text."""
    tokenizers = [getattr(pipeline, text.tokenizer) for text in spec.text]
    encoders = [exportable(encoder) for encoder in family.encoders(pipeline)]
    tokens = tokenize(tokenizers, spec.text, ["a"] * TRACED_BATCH)
    with torch.no_grad():
        conditioning = family.embed(encoders, tokens, spec.text)
        shorter = family.embed(encoders, {name: ids[:, :-1] for name, ids in tokens.items()}, spec.text)
    text_axes = {name: _text_axes(value, shorter[name]) for name, value in conditioning.items()}
    axes: dict[str, Axes] = {name: {0: "batch", 1: "text_length" + _number(name)} for name in tokens}
    module = TextEncoderGraph(family, spec.text, encoders, axes)
    part = Part("text_encoder", module, tokens, axes, tuple(conditioning))
    return part, conditioning, text_axes


def denoiser_of(
    family: Family,
    spec: GeneratorSpec,
    transformer: Any,
    conditioning: Conditioning,
    text_axes: dict[str, Axes],
) -> Part:
    """The denoiser, with `conditioning` as example inputs."""
    latents, image_axes = _latents(spec)
    axes: dict[str, Axes] = {"latents": image_axes, "timestep": {0: "batch"}, **text_axes}
    inputs = {"latents": latents, "timestep": torch.full((TRACED_BATCH,), 0.5), **conditioning}
    module = DenoiserGraph(family, spec, exportable(transformer), axes)
    return Part("denoiser", module, inputs, axes, ("velocity",), patch_of(family, transformer.config))


def patch_of(family: Family, config: Mapping[str, Any]) -> int:
    """Side of the square of latent positions that make one token of a transformer of this configuration."""
    return family.packing * int(config.get("patch_size") or 1)


def _decoder(family: Family, spec: GeneratorSpec, vae: nn.Module) -> Part:
    latents, axes = _latents(spec)
    module = DecoderGraph(family, exportable(vae))
    return Part("decoder", module, {"latents": latents}, {"latents": axes}, ("pictures",))


def _latents(spec: GeneratorSpec) -> tuple[Tensor, Axes]:
    shape = (TRACED_BATCH, *spec.latent_shape())
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return latents, {0: "batch", 2: "latent_height", 3: "latent_width"}


def _text_axes(value: Tensor, shorter: Tensor) -> Axes:
    """The axes whose length follows the length of the text."""
    follows = [axis for axis in range(1, value.ndim) if value.shape[axis] != shorter.shape[axis]]
    return {0: "batch", **dict.fromkeys(follows, "text_length")}


def _number(name: str) -> str:
    """`input_ids` -> "", `input_ids_2` -> `_2`."""
    number = name.rpartition("_")[2]
    return f"_{number}" if number.isdigit() else ""


def _tie(tensors: Sequence[Tensor], axes: Sequence[Axes]) -> None:
    """Tells the tracer that axes of one name have one length; each would be a symbol of its own."""
    first: dict[str, int] = {}
    for tensor, named in zip(tensors, axes):
        for axis, name in named.items():
            length = first.setdefault(name, tensor.shape[axis])
            torch._check(tensor.shape[axis] == length)
