"""float8 (E4M3): products with weights, scales fixed beforehand, as QuantizeLinear and DequantizeLinear.

Weights have one scale per output channel and are stored in float8, activations have one scale each: both as
TensorRT wants them. A scale puts the largest value at 448, the largest of the format. ONNX Runtime on a CPU rounds
to float8 and multiplies in float32, which is what a product in float8 that sums in float32 gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .quantize import Feed, quantised_products
from .trace import save

FLOAT8: Any = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
LARGEST = 448.0
TINY = np.float32(1e-12)
"""The scale of what is always zero."""

Array = npt.NDArray[Any]


def in_float8(model: ModelProto, feeds: Sequence[Feed]) -> ModelProto:
    """`model` with the same products in float8 that int8 has; scales cover all that `feeds` bring about."""
    products = quantised_products(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    largest = _largest(model, {node.input[0] for node in products}, feeds)
    made = ModelProto()
    made.CopyFrom(model)
    graph, chosen = made.graph, {node.name for node in products}
    del graph.node[:]
    there: set[str] = set()
    for node in model.graph.node:
        if node.name in chosen:
            x, weight = node.input[:2]
            if x not in there:
                scale = np.maximum(largest[x] / LARGEST, TINY).astype(np.float32)
                graph.node.extend(_rounded(x))
                graph.initializer.extend([*_scale(x, scale)])
            if weight not in there:
                graph.node.append(_widened(weight, _channels(node)))
                graph.initializer.extend(_narrow(weights[weight], _channels(node)))
            there |= {x, weight}
        graph.node.append(_reading(node, there if node.name in chosen else ()))
    _drop_unused(made)
    return made


def _largest(model: ModelProto, names: Iterable[str], feeds: Sequence[Feed]) -> Mapping[str, Array]:
    """The largest magnitude that each of the named results has for `feeds`."""
    watched = ModelProto()
    watched.CopyFrom(model)
    named = {name: f"{name}.largest" for name in sorted(names)}
    for name, output in named.items():
        watched.graph.node.append(helper.make_node("Abs", [name], [f"{name}.magnitude"]))
        watched.graph.node.append(helper.make_node("ReduceMax", [f"{name}.magnitude"], [output], keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    known = [entry.name for entry in model.graph.input]
    with TemporaryDirectory(prefix="fewstep-") as folder:
        file = Path(folder) / "watched.onnx"
        save(watched, file)
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        found = [session.run(list(named.values()), {name: feed[name] for name in known}) for feed in feeds]
    return dict(zip(named, np.max(np.array(found, np.float32), axis=0)))


def _channels(node: NodeProto) -> int:
    """The axis of output channels of the weight of a product."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1


def _scale(name: str, scale: Array) -> Iterator[TensorProto]:
    """The scale of `name`, and its zero point, which says what type is meant."""
    yield numpy_helper.from_array(scale, f"{name}.scale")
    yield numpy_helper.from_array(np.zeros(scale.shape, FLOAT8), f"{name}.zero")


def _rounded(x: str) -> list[NodeProto]:
    """`x.float8.wide`: what is left of x in float8."""
    inputs = [f"{x}.scale", f"{x}.zero"]
    return [
        helper.make_node("QuantizeLinear", [x, *inputs], [f"{x}.float8"], f"{x}.narrow"),
        helper.make_node("DequantizeLinear", [f"{x}.float8", *inputs], [f"{x}.float8.wide"], f"{x}.wide"),
    ]


def _widened(weight: str, axis: int) -> NodeProto:
    inputs = [f"{weight}.float8", f"{weight}.scale", f"{weight}.zero"]
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{weight}.float8.wide"], f"{weight}.wide", axis=axis
    )


def _narrow(tensor: TensorProto, axis: int) -> Iterator[TensorProto]:
    """A weight in float8, its scales and zero points."""
    values = numpy_helper.to_array(tensor)
    scale = np.maximum(np.abs(values).max(axis=1 - axis) / LARGEST, TINY).astype(np.float32)
    scaled = np.clip(values / np.expand_dims(scale, 1 - axis), -LARGEST, LARGEST)
    yield numpy_helper.from_array(scaled.astype(FLOAT8), f"{tensor.name}.float8")
    yield from _scale(tensor.name, scale)


def _reading(node: NodeProto, there: Iterable[str]) -> NodeProto:
    """The node with what is in `there` read in float8."""
    changed = NodeProto()
    changed.CopyFrom(node)
    changed.input[:] = [f"{name}.float8.wide" if name in there else name for name in node.input]
    return changed


def _drop_unused(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
