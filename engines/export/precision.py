"""The precisions that a student can be exported in, and what each has to prove.

| name | arithmetic | for |
| --- | --- | --- |
| fp32 | float32 | anything |
| fp16 | float16 with the islands of `half.py` | GPUs; a CPU widens it again and gains nothing but space |
| int8 | denoiser: products with weights in int8, activations scaled as they come | ONNX Runtime on CPUs |
| int8-qdq | the same with scales fixed beforehand, as QuantizeLinear and DequantizeLinear | TensorRT |

In int8 a picture depends on its neighbours in the batch, as much as the certificate's `batch` says: `int8`
takes one scale for all of them, and in both a value near the middle of two steps may round either way.
bf16 has no kernels in ONNX Runtime on CPUs: nothing here could certify it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import EngineError

AUTO = "auto"


@dataclass(frozen=True)
class Precision:
    """One way to compute.

    Attributes:
        name: As in the manifest.
        tolerance: Bounds of the certificate: part -> largest relative difference to PyTorch in
            float32; `picture` -> smallest PSNR in dB.
        quantised: Parts whose products with weights are in int8.
        half: Whether the parts are traced in float16.
        calibrated: Whether it needs prompts to find the ranges of activations.
    """

    name: str
    tolerance: Mapping[str, float]
    quantised: tuple[str, ...] = ()
    half: bool = False
    calibrated: bool = False


def _bounds(
    text_encoder: float, denoiser: float, decoder: float, batch: float, fused: float, picture: float
) -> Mapping[str, float]:
    parts = {"text_encoder": text_encoder, "denoiser": denoiser, "decoder": decoder}
    return MappingProxyType(
        {**parts, "batch": batch, "fused": fused, "torch": max(parts.values()), "picture": picture}
    )


# float32 noise is ten times smaller than these bounds, mistakes are far larger. One graph is the same
# operations in the same order as step calls, but float16 is widened on a CPU where ONNX Runtime likes.
# In int8 one call is held to its bound; after several, an odd prompt may give another picture, and the bounds
# on pictures only tell a generator from noise. What int8 pictures are worth, `fewstep evaluate` measures.
PRECISIONS = {
    one.name: one
    for one in (
        Precision("fp32", _bounds(1e-4, 1e-4, 1e-4, 1e-3, 1e-5, 40.0)),
        Precision("fp16", _bounds(1e-2, 1e-2, 1e-2, 1e-2, 5e-2, 40.0), half=True),
        Precision("int8", _bounds(1e-4, 0.2, 1e-4, 1.0, 1e-3, 10.0), quantised=("denoiser",)),
        Precision(
            "int8-qdq",
            _bounds(1e-4, 0.2, 1e-4, 1.0, 1e-3, 10.0),
            quantised=("denoiser",),
            calibrated=True,
        ),
    )
}
UNCERTIFIABLE = {
    "bf16": "ONNX Runtime has no bfloat16 kernels on a CPU, so no certificate can be made",
    "fp8": "ONNX Runtime has no fp8 kernels on a CPU, so no certificate can be made",
}


def precision_named(name: str) -> Precision:
    """
    Raises:
        EngineError: there is none of that name; the message lists those there are.
    """
    known = ", ".join((*PRECISIONS, AUTO))
    if name in UNCERTIFIABLE:
        raise EngineError(f"precision {name!r}: {UNCERTIFIABLE[name]}; expected one of {known}")
    if name not in PRECISIONS:
        raise EngineError(f"precision {name!r}: expected one of {known}")
    return PRECISIONS[name]
