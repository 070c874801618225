"""What a family is: how one architecture takes its inputs, as data plus four functions.

    tokens ──embed──▶ conditioning ──velocity──▶ v(x_t, t) ──decode──▶ picture ──encode──▶ x0

The functions take the modules they run as arguments, so the same ones serve the three networks of a
distillation, the sampler and the export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..spec import TextSpec

Tokens = dict[str, Tensor]
"""`input_ids` and `attention_mask`, int64 [B, L]; with a suffix `_2`, `_3` for further tokenizers."""

Conditioning = dict[str, Tensor]
"""Named tensors with batch first: the denoiser's inputs besides latents and time."""

Text = Sequence[TextSpec]


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: As in `generator.json`.
        pipeline: The diffusers pipeline class that its checkpoints are loaded and saved as.
        text: Default feeding of its tokenizers; the encoder of long texts comes last.
        time_scale: The network is told `time_scale * t`, t in (0, 1].
        text_encoders: Names of the pipeline's text encoders, in the order of `text`.
        embed: (text encoders, tokens, their feeding) -> conditioning.
        velocity: (transformer, x_BCHW, time_B, conditioning) -> v_BCHW = E[eps - x0 | x_t].
        decode: (vae, x0_BCHW) -> pictures [B, 3, H, W] in -1 ... 1 (not clipped).
        encode: The inverse; of a distribution over latents its mean.
        stock_arguments: What the stock pipeline has to be told to do the same as `embed` does.
        aliases: Other pipeline classes that its checkpoints name in `model_index.json`, those of SiD-DiT's
            own code among them.
        trigflow: Whether its checkpoints come with a TrigFlow scheduler (SANA-Sprint).
        packing: Side of the square of latent positions that `velocity` folds into channels.
        sigmas: Levels of N teacher steps before the scheduler shifts them; by default its own.
        instruction: The prefix it was trained with, if there is one.
        optional: Parts that its pipelines may lack.
        guidance: Whether its teachers can have a guidance input, `conditioning["guidance"]` [B].
        adapted: Layers that a LoRA changes: ends of their names behind a block's, and behind `attn`.
        last_norm: The transformer's modulated norm before its last layer, which puts out [B, N, C] over
            the N tokens of the picture: what the discriminator sees (`sid.md` 2.9).
    """

    name: str
    pipeline: str
    text: tuple[TextSpec, ...]
    time_scale: float
    text_encoders: tuple[str, ...]
    embed: Callable[[Sequence[Any], Tokens, Text], Conditioning]
    velocity: Callable[[nn.Module, Tensor, Tensor, Conditioning], Tensor]
    decode: Callable[[nn.Module, Tensor], Tensor]
    encode: Callable[[nn.Module, Tensor], Tensor]
    stock_arguments: Callable[[Text], Mapping[str, object]] = lambda text: {}
    aliases: tuple[str, ...] = ()
    trigflow: bool = False
    packing: int = 1
    sigmas: Callable[[int], list[float]] | None = None
    instruction: Callable[[], str] | None = None
    optional: tuple[str, ...] = ()
    guidance: bool = False
    adapted: tuple[str, ...] = ()
    last_norm: str = "norm_out"

    def encoders(self, pipeline: Any) -> list[nn.Module]:
        """The text encoders that a pipeline has: Stable Diffusion 3 may come without T5."""
        found = [getattr(pipeline, name) for name in self.text_encoders]
        return [encoder for encoder in found if encoder is not None]

    def absent(self, index: Mapping[str, Any]) -> dict[str, None]:
        """Optional parts that a `model_index.json` does not have; diffusers has to be told of each."""
        return {name: None for name in self.optional if not any(index.get(name, ()))}


def tokenize(tokenizers: Sequence[Any], text: Text, prompts: Sequence[str]) -> Tokens:
    """Token ids and masks of `prompts` for each tokenizer, padded on the right to `max_length`."""
    tokens: Tokens = {}
    for number, (tokenizer, spec) in enumerate(zip(tokenizers, text, strict=True), start=1):
        suffix = "" if number == 1 else f"_{number}"
        tokenizer.padding_side = "right"
        encoded = tokenizer(
            [spec.apply(prompt) for prompt in prompts],
            padding="max_length",
            max_length=spec.max_length,
            truncation=True,
            return_tensors="pt",
        )
        tokens["input_ids" + suffix] = encoded.input_ids
        tokens["attention_mask" + suffix] = encoded.attention_mask
    return tokens


def with_guidance(conditioning: Conditioning, value: float | None) -> Conditioning:
    """Adds the value of the guidance input, [B]; a network without that input does not look at it."""
    if value is None:
        return conditioning
    some = next(iter(conditioning.values()))
    return {**conditioning, "guidance": torch.full((some.shape[0],), value, device=some.device)}


def repeat(conditioning: Conditioning, times: int) -> Conditioning:
    return {name: value.repeat_interleave(times, dim=0) for name, value in conditioning.items()}


def concat(*parts: Conditioning) -> Conditioning:
    """Joins batches of conditioning."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
