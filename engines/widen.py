"""Graphs in bfloat16 for ONNX Runtime on a CPU, which has no kernels for it.

Each operation is done in float32 and its result is rounded to bfloat16: what a kernel does that accumulates in
float32 and stores its result. Kernels of a GPU that do several operations at once round less often.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .errors import EngineError
from .runtime.graphs import Graph
from .runtime.onnx import OnnxGraph

UNINFERRED = ("GroupNormalization",)
"""Operations without a rule for their type in onnx 1.23; it is that of their first input."""
NARROW, WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT


def widened(model: ModelProto) -> ModelProto:
    """A graph in which nothing computes in bfloat16, with the results of `model`; `model` itself if nothing does.

    Weights stay as they are, also in a file beside it, and are widened where they are used.
    """
    narrow = _narrow_names(model)
    if not narrow:
        return model
    wide = ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    del graph.value_info[:], graph.node[:]
    for tensor in graph.initializer:
        if tensor.data_type == NARROW:
            graph.node.append(_cast(f"{tensor.name}.narrow", tensor.name, WIDE))
            tensor.name += ".narrow"
    for node in model.graph.node:
        graph.node.extend(_rounded(node, narrow))
    return wide


def open_widened(file: Path, threads: int, provider: str) -> Graph:
    """`OnnxGraph` of a graph that may compute in bfloat16.

    Raises:
        EngineError: as `OnnxGraph`.
    """
    fresh = file.with_name(f".wide-{file.name}")  # beside it, where its weights may be
    try:
        fresh.write_bytes(widened(onnx.load(file, load_external_data=False)).SerializeToString())
        return OnnxGraph(fresh, threads, provider)
    finally:
        fresh.unlink(missing_ok=True)


def _narrow_names(model: ModelProto) -> set[str]:
    """Results in bfloat16.

    Raises:
        EngineError: the type of a result cannot be inferred.
    """
    if not computes_narrow(model):
        return set()
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # of a joined graph it would be incomplete
    for node in bare.graph.node:
        if node.op_type in UNINFERRED:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    kinds = {one.name: one.type.tensor_type.elem_type for one in (*inferred.value_info, *inferred.output)}
    for node in model.graph.node:
        if unknown := [name for name in node.output if name and name not in kinds]:
            raise EngineError(f"node {node.name}: the type of {unknown[0]} cannot be inferred")
    return {name for name, kind in kinds.items() if kind == NARROW}


def computes_narrow(model: ModelProto) -> bool:
    """Whether there are weights in bfloat16, or casts to it."""
    casts = (a.name == "to" and a.i == NARROW for node in model.graph.node for a in node.attribute)
    return any(casts) or any(tensor.data_type == NARROW for tensor in model.graph.initializer)


def _rounded(node: NodeProto, narrow: set[str]) -> Iterator[NodeProto]:
    """The node in float32, and the rounding of its results that were in bfloat16."""
    wide = NodeProto()
    wide.CopyFrom(node)
    for attribute in wide.attribute:
        if attribute.name == "to" and attribute.i == NARROW:
            attribute.i = WIDE
        if attribute.HasField("t") and attribute.t.data_type == NARROW:
            values = numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
    results = [name for name in node.output if name in narrow]
    wide.output[:] = [f"{name}.wide" if name in results else name for name in node.output]
    yield wide
    for name in results:
        yield _cast(f"{name}.wide", f"{name}.narrow", NARROW)
        yield _cast(f"{name}.narrow", name, WIDE)


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], target, to=kind)
