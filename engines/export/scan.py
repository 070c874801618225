"""Rules that a graph must keep before it may be shipped."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto

from ..errors import EngineError
from .external import array_of

MOVES = {"Cast", "Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
SUMS = {"Einsum", "MatMul", "ReduceSum"}
MEANS = SUMS | {"ReduceMean", "ReduceL2", "ReduceSumSquare"}
LARGE = 1024
"""Constants with fewer elements need not be weights."""


def scan(name: str, model: ModelProto, module: torch.nn.Module, folder: Path | None = None) -> None:
    """Refuses graphs that would fail or lie in one of the runtimes; large weights lie in `folder`.

    Raises:
        EngineError: double precision, a sequence operation, an Einsum in bfloat16, an axis without a
            name, a NaN among the constants, a division by a sum or a root of a mean that nothing keeps
            from being zero, a normalisation without epsilon, or a large constant that is no weight of
            `module`.
    """
    for finding in (*findings(model, folder), *foreign_constants(model, module, folder)):
        raise EngineError(f"graph {name}: {finding}; this architecture needs a change in engines/export")


def findings(model: ModelProto, folder: Path | None = None) -> Iterator[str]:
    yield from _doubles(model)
    yield from _sequences(model)
    yield from _unnamed_axes(model)
    yield from _non_finite(model, folder)
    yield from _bare_divisions(model)
    yield from _bare_roots(model)
    yield from _einsums_in_bfloat16(model)


def foreign_constants(
    model: ModelProto, module: torch.nn.Module, folder: Path | None = None
) -> Iterator[str]:
    """Large constants that are neither a weight or buffer of `module` nor one transposed: traced state."""
    known = {
        _digest(form) for tensor in module.state_dict(keep_vars=False).values() for form in _forms(tensor)
    }
    known |= {_digest(form) for tensor in module.buffers() for form in _forms(tensor)}
    for label, tensor in _constants(model):
        if np.prod(tensor.dims) < LARGE:
            continue
        array = array_of(tensor, folder)
        # One value all over is arithmetic, such as the ones of a normalisation without weights.
        if _digest(array) not in known and (array != array.flat[0]).any():
            yield f"constant {label} {list(tensor.dims)} is no weight of the network"


def _forms(tensor: torch.Tensor) -> Iterator[Any]:
    values = tensor.detach().cpu()
    array = values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()
    yield array
    if array.ndim == 2:
        yield array.T


def _digest(array: Any) -> bytes:
    plain = np.ascontiguousarray(array).view(np.uint8)  # Python has no buffers of bfloat16
    return hashlib.blake2b(plain.data).digest()


def _doubles(model: ModelProto) -> Iterator[str]:
    graph = model.graph
    for entry in (*graph.input, *graph.output, *graph.value_info):
        if entry.type.tensor_type.elem_type == TensorProto.DOUBLE:
            yield f"{entry.name} is float64"
    for label, tensor in _constants(model):
        if tensor.data_type == TensorProto.DOUBLE:
            yield f"constant {label} is float64"
    for node in graph.node:
        if any(a.name == "to" and a.i == TensorProto.DOUBLE for a in node.attribute):
            yield f"node {node.name} casts to float64"


def _sequences(model: ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        if "Sequence" in node.op_type:
            yield f"node {node.name} is a {node.op_type}, which TensorRT does not parse"


def _unnamed_axes(model: ModelProto) -> Iterator[str]:
    for entry in (*model.graph.input, *model.graph.output):
        for axis, dim in enumerate(entry.type.tensor_type.shape.dim):
            unnamed = not dim.dim_param and not dim.dim_value
            if unnamed or re.search(r"\b[su]\d+\b|unk", dim.dim_param):
                yield f"axis {axis} of {entry.name} has no name ({dim.dim_param or 'unknown'})"


def _non_finite(model: ModelProto, folder: Path | None) -> Iterator[str]:
    for label, tensor in _constants(model):
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16):
            values = array_of(tensor, folder)
            if np.isnan(values).any() or np.isposinf(values).any():  # masks may hold minus infinity
                yield f"constant {label} is not finite"


def _bare_divisions(model: ModelProto) -> Iterator[str]:
    """The exporter's optimiser drops small guards: see `attention.py`."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in ("Div", "Reciprocal"):
            continue
        maker: NodeProto | None = makers.get(node.input[-1])
        while maker is not None and maker.op_type in MOVES:
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type in SUMS:
            yield f"node {node.name} divides by a bare {maker.op_type}, which may be zero"


def _bare_roots(model: ModelProto) -> Iterator[str]:
    """Of normalisations: without its epsilon a row of zeros is divided by zero."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "Sqrt" else None
        if maker is not None and maker.op_type in MEANS:
            yield f"node {node.name} is the root of a bare {maker.op_type}, which may be zero"
        epsilons = [a.f for a in node.attribute if a.name == "epsilon"]
        if node.op_type.endswith("Normalization") and epsilons and epsilons[0] <= 0:
            yield f"node {node.name} is a {node.op_type} without epsilon"


def _einsums_in_bfloat16(model: ModelProto) -> Iterator[str]:
    types = {entry.name: entry.type.tensor_type.elem_type for entry in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "Einsum" and types.get(node.input[0]) == TensorProto.BFLOAT16:
            yield f"node {node.name} is an Einsum in bfloat16, which ONNX does not have"


def _constants(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield node.name, attribute.t
