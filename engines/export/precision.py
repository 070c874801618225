"""The precisions that a student can be exported in, and what each has to prove.

| name | arithmetic | for |
| --- | --- | --- |
| fp32 | float32 | anything |
| fp16 | float16 with the islands of `half.py` | GPUs; a CPU widens it again and gains nothing but space |
| bf16 | bfloat16 with the same islands | GPUs; on a CPU PyTorch alone runs it |
| int8 | denoiser: products with weights in int8, activations scaled as they come | ONNX Runtime on CPUs |
| int8-qdq | the same with scales fixed beforehand, as QuantizeLinear and DequantizeLinear | TensorRT |
| fp8-qdq | the same in float8 (E4M3) | TensorRT on GPUs of compute capability 8.9 and later |

In int8 a picture depends on its neighbours in the batch, as much as the certificate's `batch` says: `int8`
takes one scale for all of them, and in both a value near the middle of two steps may round either way.
ONNX Runtime has no bfloat16 kernels on CPUs: there graphs in bf16 are compared as `engines/widen.py` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from ..bundle import PrecisionName
from ..errors import EngineError
from ..runtime.onnx import NOT_ON_CPU

AUTO = "auto"
Half = torch.dtype | None


@dataclass(frozen=True)
class Precision:
    """One way to compute.

    Attributes:
        name: As in the manifest.
        tolerance: Bounds of the certificate: part -> largest relative difference to PyTorch in
            float32; `picture` -> smallest PSNR in dB.
        quantised: Parts whose products with weights have eight bits.
        half: The type that parts in half precision are traced in.
        scales: What activations are quantised by: `as they come`, or fixed beforehand for `int8` or `fp8`.
    """

    name: PrecisionName
    tolerance: Mapping[str, float]
    quantised: tuple[str, ...] = ()
    half: Half = None
    scales: str = "as they come"

    @property
    def calibrated(self) -> bool:
        """Whether it needs prompts to find the ranges of activations."""
        return self.scales != "as they come"

    @property
    def on_cpu(self) -> bool:
        """Whether ONNX Runtime can run it on a CPU."""
        return self.name not in NOT_ON_CPU


def _bounds(
    text_encoder: float, denoiser: float, decoder: float, batch: float, fused: float, picture: float
) -> Mapping[str, float]:
    parts = {"text_encoder": text_encoder, "denoiser": denoiser, "decoder": decoder}
    return MappingProxyType(
        {**parts, "batch": batch, "fused": fused, "torch": max(parts.values()), "picture": picture}
    )


# float32 noise is ten times smaller than these bounds, mistakes are far larger. One graph is the same
# operations in the same order as step calls, but float16 is widened on a CPU where ONNX Runtime likes.
# bfloat16 has three bits less than float16, and so eight times its error.
# In eight bits one call is held to its bound; after several, an odd prompt may give another picture, and the bounds
# on pictures only tell a generator from noise. What such pictures are worth, `fewstep evaluate` measures.
_EIGHT_BITS = _bounds(1e-4, 0.2, 1e-4, 1.0, 1e-3, 10.0)
PRECISIONS = {
    one.name: one
    for one in (
        Precision("fp32", _bounds(1e-4, 1e-4, 1e-4, 1e-3, 1e-5, 40.0)),
        Precision("fp16", _bounds(1e-2, 1e-2, 1e-2, 1e-2, 5e-2, 40.0), half=torch.float16),
        Precision("bf16", _bounds(8e-2, 8e-2, 8e-2, 8e-2, 5e-2, 22.0), half=torch.bfloat16),
        Precision("int8", _EIGHT_BITS, ("denoiser",)),
        Precision("int8-qdq", _EIGHT_BITS, ("denoiser",), scales="int8"),
        Precision("fp8-qdq", _EIGHT_BITS, ("denoiser",), scales="fp8"),
    )
}


def precision_named(name: str) -> Precision:
    """
    Raises:
        EngineError: there is none of that name; the message lists those there are.
    """
    known = ", ".join((*PRECISIONS, AUTO))
    if name not in PRECISIONS:
        raise EngineError(f"precision {name!r}: expected one of {known}")
    return PRECISIONS[name]
