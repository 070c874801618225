"""Whether plans do what the graphs do: measured where there is a GPU, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Protocol

import numpy as np

from ..bundle import Bundle, Parity, Size
from ..errors import EngineError
from ..runtime.base import Floats, Networks
from ..runtime.sampler import noise, sample
from .cuda import Array

PROMPTS = ("a red circle on a white background", "", "Überraschung 猫 🎨", "word " * 400)
EQUAL_DB = 100.0


class Decoding(Networks, Protocol):
    """Networks that also give pictures before they are rounded."""

    def decode_floats(self, x0_BCHW: Floats) -> Floats: ...


def check_parity(bundle: Bundle, expected: Decoding, found: Decoding) -> tuple[Parity, ...]:
    """Text encoder, denoiser, decoder and pictures at every batch size and size of the bundle.

    Raises:
        EngineError: one is further off than the bundle's own certificate allows.
    """
    measured = tuple(
        one for batch in bundle.manifest.batch_sizes for one in _measure(bundle, expected, found, batch)
    )
    certificate = bundle.manifest.certificate.model_copy(update={"measurements": measured})
    if failures := certificate.failures():
        raise EngineError(f"the plans do not match ONNX Runtime: {'; '.join(failures)}")
    return measured


def _measure(bundle: Bundle, expected: Decoding, found: Decoding, batch: int) -> Iterator[Parity]:
    prompts = list(islice(cycle(PROMPTS), batch))
    conditioning, other = expected.encode(prompts), found.encode(prompts)
    yield _parity("text_encoder", batch, [(value, other[name]) for name, value in conditioning.items()])
    latents = [noise(seed, 0, (batch, *bundle.spec.latent_shape(size))) for seed, size in _sizes(bundle)]
    levels = sorted({level for row in bundle.spec.levels.values() for level in row})
    t_B = np.array(list(islice(cycle(levels), batch)), np.float32)
    pairs = [[one.velocity(x, t_B, conditioning) for one in (expected, found)] for x in latents]
    yield _parity("denoiser", batch, pairs)
    yield _parity("decoder", batch, [[one.decode_floats(x) for one in (expected, found)] for x in latents])
    yield _pictures(bundle, expected, found, prompts)


def _pictures(bundle: Bundle, expected: Decoding, found: Decoding, prompts: Sequence[str]) -> Parity:
    pairs = [
        [
            one.decode(sample(one, bundle.spec, prompts, range(len(prompts)), steps, size))
            for one in (expected, found)
        ]
        for _, size in _sizes(bundle)
        for steps in bundle.spec.levels
    ]
    psnr = min(_psnr(a, b) for pair in pairs for a, b in zip(*pair))
    return _parity("picture", len(prompts), pairs).model_copy(update={"psnr_db": psnr})


def _sizes(bundle: Bundle) -> Iterator[tuple[int, Size]]:
    return enumerate(bundle.manifest.sizes)


def _parity(part: str, batch: int, pairs: Iterable[Sequence[Any]]) -> Parity:
    worst, relative = 0.0, 0.0
    for expected, found in (map(np.asarray, pair) for pair in pairs):
        difference = float(np.max(np.abs(expected.astype(np.float64) - found)))
        scale = float(np.max(np.abs(expected))) or 1.0
        # np.maximum hands NaN on, so that one wrong value fails the whole
        worst, relative = np.maximum(worst, difference), np.maximum(relative, difference / scale)
    return Parity(part=part, batch_size=batch, max_abs=float(worst), relative=float(relative))


def _psnr(expected: Array, found: Array) -> float:
    error = float(np.mean(np.square(expected.astype(np.float64) - found)))
    return min(EQUAL_DB, round(10 * float(np.log10(255**2 / error)), 1)) if error else EQUAL_DB
