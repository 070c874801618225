"""int8: products with weights, S8 per output channel; everything else stays as it was.

Convolutions are left alone: quantised, ONNX Runtime's were two to five times slower than in float32. So
is the last product, whose error is the result's: without it the shapes student's was a third smaller.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from ..bundle import SamplerSpec, Size
from ..runtime.base import Conditioning, Floats
from ..runtime.sampler import sample
from .reference import TorchNetworks
from .trace import PROTOBUF_LIMIT, save

PRODUCTS = ["MatMul", "Gemm"]
CALIBRATION_BATCH = 8

Feed = dict[str, Any]
"""Inputs of one call of the denoiser, by name."""


def with_dynamic_scales(model: ModelProto) -> ModelProto:
    """`model` with weights in int8 and activations quantised as they come: one scale a tensor."""
    with _in_folder(model) as (source, target):
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=PRODUCTS,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_left_alone(model),
            use_external_data_format=model.ByteSize() >= PROTOBUF_LIMIT,
        )
        return onnx.load(target)


def with_fixed_scales(model: ModelProto, feeds: Sequence[Feed]) -> ModelProto:
    """`model` with int8 weights and QuantizeLinear, DequantizeLinear around its products with weights.

    Scales are symmetric, as TensorRT wants them, and cover all that `feeds` bring about.
    """
    with _in_folder(model) as (source, target):
        quantize_static(
            source,
            target,
            _Reader(feeds, [entry.name for entry in model.graph.input]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=PRODUCTS,
            nodes_to_exclude=_left_alone(model),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=model.ByteSize() >= PROTOBUF_LIMIT,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,  # TensorRT adds biases as they are
                "OpTypesToExcludeOutputQuantization": PRODUCTS,
            },
        )
        return onnx.load(target)


def denoiser_feeds(
    networks: TorchNetworks, spec: SamplerSpec, prompts: Sequence[str], size: Size
) -> list[Feed]:
    """What the denoiser is given when the real sampler draws `prompts` in every number of steps."""
    recorder = _Recorder(networks)
    for start in range(0, len(prompts), CALIBRATION_BATCH):
        batch = prompts[start : start + CALIBRATION_BATCH]
        for steps in spec.levels:
            sample(recorder, spec, batch, range(start, start + len(batch)), steps, size)
    return recorder.feeds


class _Recorder:
    """`Networks` that remember what the denoiser was given."""

    def __init__(self, networks: TorchNetworks) -> None:
        self.feeds: list[Feed] = []
        self._networks = networks
        self.encode, self.decode = networks.encode, networks.decode

    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        self.feeds.append({"latents": x_BCHW, "timestep": t_B, **conditioning})
        return self._networks.velocity(x_BCHW, t_B, conditioning)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[Feed], names: Sequence[str]) -> None:
        self._left = iter([{name: feed[name] for name in names} for feed in feeds])

    def get_next(self) -> Feed | None:
        return next(self._left, None)


def quantised_products(model: ModelProto) -> list[NodeProto]:
    """Products with weights, but for the last."""
    weights = {tensor.name for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    return [node for node in products if node.input[1] in weights][:-1]


def _left_alone(model: ModelProto) -> list[str]:
    """Products of activations with each other, and the last one with weights."""
    quantised = {node.name for node in quantised_products(model)}
    return [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.name not in quantised]


@contextmanager
def _in_folder(model: ModelProto) -> Iterator[tuple[Path, Path]]:
    """The graph as a file, and where the quantised one goes; the library's advice is not shown."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with TemporaryDirectory(prefix="fewstep-") as folder:
            source = Path(folder) / "float.onnx"
            save(model, source)
            yield source, Path(folder) / "int8.onnx"
    finally:
        logging.disable(previous)
