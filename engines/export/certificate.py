"""The parity certificate: every part and the final pictures, ONNX Runtime against PyTorch.

A graph that is right for one input can be wrong for the next, so each is run at every batch size and
picture size, with several seeds and with the inputs that hide mistakes: the empty prompt, a prompt
that is cut, letters outside the vocabulary, latents that are all zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from ..bundle import Certificate, Parity, SamplerSpec, Size
from ..runtime.base import Conditioning, Floats, Images
from ..runtime.fused import FusedGraphs
from ..runtime.graphs import GraphNetworks
from ..runtime.sampler import noise, sample
from .reference import TorchNetworks
from .staged import Remembering

PROMPTS = (
    "a red circle on a white background",
    "",
    "A Photo of a cat, at dusk!",
    "Überraschung 猫 🎨",
    "word " * 400,
)
SEEDS = (0, 1, 2**63 - 1)
EQUAL_DB = 100.0

Say = Callable[[str], None]
Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Expected and found."""


def certify(
    reference: TorchNetworks,
    graphs: GraphNetworks,
    spec: SamplerSpec,
    batch_sizes: Sequence[int],
    sizes: Sequence[Size],
    tolerance: Mapping[str, float],
    say: Say,
    fused: FusedGraphs | None = None,
    programs: GraphNetworks | None = None,
    how: str = "",
) -> Certificate:
    """Measures everything; whether the bounds of `tolerance` hold is for `Certificate.failures` to say.

    `how` is added to the name of what ran the graphs.
    """
    say(f"drawing with PyTorch in batches of {', '.join(map(str, batch_sizes))}")
    expected = _draw(Remembering(reference), spec, batch_sizes, sizes)
    say("comparing with the graphs")
    networks = Remembering(graphs)
    found = _draw(networks, spec, batch_sizes, sizes, [one.conditioning for one in expected])
    alone = {size: _one_by_one(networks, spec, max(batch_sizes), size) for size in sizes}
    measurements = []
    for batch_size, wanted, got in zip(batch_sizes, expected, found):
        measurements += _compared(batch_size, wanted, got)
        both = [pair for size in sizes for pair in _batched(networks, spec, got, size, alone[size])]
        measurements.append(_parity("batch", batch_size, both))
        if fused is not None:
            one_call = _in_one_call(networks, fused, spec, batch_size, sizes)
            measurements.append(_parity("fused", batch_size, one_call))
    if programs is not None:
        conditioning = [one.conditioning for one in expected]
        by_torch = _draw(Remembering(programs), spec, batch_sizes, sizes, conditioning)
        for batch_size, wanted, got in zip(batch_sizes, expected, by_torch):
            measurements.append(_parity("torch", batch_size, _pairs(wanted, got)))
    unmeasured = {"fused"} if fused is None else set()
    unmeasured |= {"torch"} if programs is None else set()
    return Certificate(
        reference=f"torch {torch.__version__} float32",
        runtime=f"onnxruntime {ort.__version__} on CPU{how}",
        tolerance={part: bound for part, bound in tolerance.items() if part not in unmeasured},
        measurements=tuple(measurements),
    )


@dataclass
class _Drawn:
    """What networks make of one batch: of its prompts, of noise, and as a generator."""

    conditioning: Conditioning
    velocities: list[Floats]
    latents: dict[tuple[Size, int], Floats]
    """By size and step count."""
    decoded: list[Floats]
    pictures: dict[tuple[Size, int], Images]


def _draw(
    networks: Remembering,
    spec: SamplerSpec,
    batch_sizes: Sequence[int],
    sizes: Sequence[Size],
    given: Sequence[Conditioning] | None = None,
) -> list[_Drawn]:
    """All that the text encoder has to do, then the denoiser, then the decoder: one may be in memory at a time.

    Velocities are those for the conditioning that is `given`, else for the networks' own.
    """
    drawn = [_Drawn(networks.encode(_prompts(count)), [], {}, [], {}) for count in batch_sizes]
    given = given or [one.conditioning for one in drawn]
    for count, one, conditioning in zip(batch_sizes, drawn, given):
        for size in sizes:
            one.velocities += _velocities(networks, spec, count, conditioning, size)
            one.latents |= {
                (size, steps): _sample(networks, spec, count, size, steps) for steps in spec.levels
            }
    for count, one in zip(batch_sizes, drawn):
        for size in sizes:
            one.decoded += [networks.decode_floats(_latents(spec, count, size, seed)) for seed in SEEDS]
        one.pictures = {key: networks.decode(latents) for key, latents in one.latents.items()}
    return drawn


def _velocities(
    networks: Remembering, spec: SamplerSpec, count: int, conditioning: Conditioning, size: Size
) -> Iterable[Floats]:
    levels = sorted({level for row in spec.levels.values() for level in row})
    for seed in SEEDS:
        t_B = np.array([levels[(seed + image) % len(levels)] for image in range(count)], np.float32)
        yield networks.velocity(_latents(spec, count, size, seed), t_B, conditioning)


def _compared(batch_size: int, expected: _Drawn, found: _Drawn) -> list[Parity]:
    text = [(value, found.conditioning[name]) for name, value in expected.conditioning.items()]
    pictures = [(value, found.pictures[key]) for key, value in expected.pictures.items()]
    psnr = min(_psnr(a, b) for pair in pictures for a, b in zip(*pair))
    return [
        _parity("text_encoder", batch_size, text),
        _parity("denoiser", batch_size, zip(expected.velocities, found.velocities)),
        _parity("decoder", batch_size, zip(expected.decoded, found.decoded)),
        _parity("picture", batch_size, pictures).model_copy(update={"psnr_db": round(psnr, 1)}),
    ]


def _pairs(expected: _Drawn, found: _Drawn) -> Iterable[Pair]:
    yield from ((value, found.conditioning[name]) for name, value in expected.conditioning.items())
    yield from zip(expected.velocities, found.velocities)
    yield from zip(expected.decoded, found.decoded)


def _one_by_one(graphs: Remembering, spec: SamplerSpec, count: int, size: Size) -> tuple[Floats, Floats]:
    """Latents and pictures of each image of the largest batch, made alone."""
    shown, steps = zip(_prompts(count), range(count)), max(spec.levels)
    latents = [sample(graphs, spec, [prompt], [seed], steps, size) for prompt, seed in shown]
    pictures = [graphs.decode_floats(one) for one in latents]
    return np.concatenate(latents), np.concatenate(pictures)


def _batched(
    graphs: Remembering, spec: SamplerSpec, drawn: _Drawn, size: Size, alone: tuple[Floats, Floats]
) -> Iterable[Pair]:
    """Latents and pictures of images made alone, and of the same images in one batch."""
    latents = drawn.latents[size, max(spec.levels)]
    yield alone[0][: len(latents)], latents
    yield alone[1][: len(latents)], graphs.decode_floats(latents)


def _in_one_call(
    graphs: Remembering | GraphNetworks,
    fused: FusedGraphs,
    spec: SamplerSpec,
    batch_size: int,
    sizes: Sequence[Size],
) -> Iterable[Pair]:
    """Pictures by step calls and by the fused graphs, for each number of steps."""
    conditioning = graphs.encode(_prompts(batch_size))
    for size in sizes:
        for steps in spec.levels:
            stepwise = graphs.decode_floats(_sample(graphs, spec, batch_size, size, steps))
            yield stepwise, fused.pictures(conditioning, range(batch_size), steps, size)


def _sample(
    networks: Remembering | GraphNetworks,
    spec: SamplerSpec,
    count: int,
    size: Size,
    steps: int | None = None,
) -> Floats:
    return sample(networks, spec, _prompts(count), range(count), steps or max(spec.levels), size)


def _prompts(count: int) -> list[str]:
    return list(islice(cycle(PROMPTS), count))


def _latents(spec: SamplerSpec, batch_size: int, size: Size, seed: int) -> Floats:
    """Noise; the first image of the second batch is all zero."""
    x_BCHW = noise(seed, batch_size, (batch_size, *spec.latent_shape(size)))
    if seed == SEEDS[1]:
        x_BCHW[0] = 0
    return x_BCHW


def _parity(part: str, batch_size: int, pairs: Iterable[Pair]) -> Parity:
    worst, relative = 0.0, 0.0
    for expected, found in pairs:
        difference = float(np.max(np.abs(expected.astype(np.float64) - found.astype(np.float64))))
        scale = float(np.max(np.abs(expected.astype(np.float64))))
        # np.maximum hands NaN on, so that one wrong value fails the whole
        worst, relative = np.maximum(worst, difference), np.maximum(relative, difference / (scale or 1.0))
    return Parity(part=part, batch_size=batch_size, max_abs=_digits(worst), relative=_digits(relative))


def _digits(value: float) -> float:
    return float(f"{value:.2g}")


def _psnr(expected: Images, found: Images) -> float:
    error = float(np.mean(np.square(expected.astype(np.float64) - found)))
    return min(EQUAL_DB, 10 * float(np.log10(255**2 / error))) if error else EQUAL_DB
