"""The parity certificate: every part and the final pictures, ONNX Runtime against PyTorch.

A graph that is right for one input can be wrong for the next, so each is run at every batch size and
picture size, with several seeds and with the inputs that hide mistakes: the empty prompt, a prompt
that is cut, letters outside the vocabulary, latents that are all zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from ..bundle import Certificate, Parity, SamplerSpec, Size
from ..runtime.base import Conditioning, Floats, Images
from ..runtime.fused import FusedGraphs
from ..runtime.onnx import OnnxNetworks
from ..runtime.sampler import noise, sample
from .reference import TorchNetworks

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
    graphs: OnnxNetworks,
    spec: SamplerSpec,
    batch_sizes: Sequence[int],
    sizes: Sequence[Size],
    tolerance: Mapping[str, float],
    say: Say,
    fused: FusedGraphs | None = None,
) -> Certificate:
    """Measures everything; whether the bounds of `tolerance` hold is for `Certificate.failures` to say."""
    measurements = []
    alone = {size: _one_by_one(graphs, spec, max(batch_sizes), size) for size in sizes}
    for batch_size in batch_sizes:
        say(f"comparing with PyTorch at batch size {batch_size}")
        conditioning = reference.encode(_prompts(batch_size))
        found = graphs.encode(_prompts(batch_size))
        text = [(value, found[name]) for name, value in conditioning.items()]
        measurements.append(_parity("text_encoder", batch_size, text))
        for part, compare in (("denoiser", _velocities), ("decoder", _decoded)):
            pairs = [pair for size in sizes for pair in compare(reference, graphs, spec, conditioning, size)]
            measurements.append(_parity(part, batch_size, pairs))
        measurements.append(_pictures(reference, graphs, spec, batch_size, sizes))
        both = [pair for size in sizes for pair in _batched(graphs, spec, batch_size, size, alone[size])]
        measurements.append(_parity("batch", batch_size, both))
        if fused is not None:
            one_call = _in_one_call(graphs, fused, spec, batch_size, sizes)
            measurements.append(_parity("fused", batch_size, one_call))
    return Certificate(
        reference=f"torch {torch.__version__} float32",
        runtime=f"onnxruntime {ort.__version__} on CPU",
        tolerance={part: bound for part, bound in tolerance.items() if fused is not None or part != "fused"},
        measurements=tuple(measurements),
    )


def _velocities(
    reference: TorchNetworks, graphs: OnnxNetworks, spec: SamplerSpec, conditioning: Conditioning, size: Size
) -> Iterable[Pair]:
    batch_size = len(next(iter(conditioning.values())))
    levels = sorted({level for row in spec.levels.values() for level in row})
    for seed in SEEDS:
        x_BCHW = _latents(spec, batch_size, size, seed)
        t_B = np.array([levels[(seed + image) % len(levels)] for image in range(batch_size)], np.float32)
        yield reference.velocity(x_BCHW, t_B, conditioning), graphs.velocity(x_BCHW, t_B, conditioning)


def _decoded(
    reference: TorchNetworks, graphs: OnnxNetworks, spec: SamplerSpec, conditioning: Conditioning, size: Size
) -> Iterable[Pair]:
    batch_size = len(next(iter(conditioning.values())))
    for seed in SEEDS:
        x0_BCHW = _latents(spec, batch_size, size, seed)
        yield reference.decode_floats(x0_BCHW), graphs.decode_floats(x0_BCHW)


def _pictures(
    reference: TorchNetworks, graphs: OnnxNetworks, spec: SamplerSpec, batch_size: int, sizes: Sequence[Size]
) -> Parity:
    pairs = []
    for size in sizes:
        for steps in spec.levels:
            latents = [_sample(networks, spec, batch_size, size, steps) for networks in (reference, graphs)]
            pairs.append((reference.decode(latents[0]), graphs.decode(latents[1])))
    psnr = min(_psnr(a, b) for expected, found in pairs for a, b in zip(expected, found))
    return _parity("picture", batch_size, pairs).model_copy(update={"psnr_db": round(psnr, 1)})


def _one_by_one(graphs: OnnxNetworks, spec: SamplerSpec, count: int, size: Size) -> tuple[Floats, Floats]:
    """Latents and pictures of each image of the largest batch, made alone."""
    shown, steps = zip(_prompts(count), range(count)), max(spec.levels)
    latents = [sample(graphs, spec, [prompt], [seed], steps, size) for prompt, seed in shown]
    pictures = [graphs.decode_floats(one) for one in latents]
    return np.concatenate(latents), np.concatenate(pictures)


def _batched(
    graphs: OnnxNetworks, spec: SamplerSpec, batch_size: int, size: Size, alone: tuple[Floats, Floats]
) -> Iterable[Pair]:
    """Latents and pictures of images made alone, and of the same images in one batch."""
    latents = _sample(graphs, spec, batch_size, size)
    yield alone[0][:batch_size], latents
    yield alone[1][:batch_size], graphs.decode_floats(latents)


def _in_one_call(
    graphs: OnnxNetworks, fused: FusedGraphs, spec: SamplerSpec, batch_size: int, sizes: Sequence[Size]
) -> Iterable[Pair]:
    """Pictures by step calls and by the fused graphs, for each number of steps."""
    conditioning = graphs.encode(_prompts(batch_size))
    for size in sizes:
        for steps in spec.levels:
            stepwise = graphs.decode_floats(_sample(graphs, spec, batch_size, size, steps))
            yield stepwise, fused.pictures(conditioning, range(batch_size), steps, size)


def _sample(
    networks: TorchNetworks | OnnxNetworks,
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
