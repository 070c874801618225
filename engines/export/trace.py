"""One part -> one ONNX file: traced, tidied, scanned, with weights stored in half where that is exact.

Tracing does not copy weights. Those of a graph over 2 GB, which no protobuf can hold, go to a file beside it one by
one, and the graph that is handed around here has references to their bytes.
"""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ..bundle import Graph, Tensor
from .external import halved, is_external, write_beside
from .graphs import Part
from .scan import scan

OPSET = 20
BFLOAT16_OPSET = 22
"""The first in which every operation has bfloat16; in later ones attention is an operation of its own, which
neither ONNX Runtime nor TensorRT takes as it is traced."""
SMALL = 1024
"""Tensors with fewer elements are stored as they are."""
PROTOBUF_LIMIT = 2**31 - 2**20
"""Larger graphs keep their weights in a file beside them."""


def trace_part(part: Part, folder: Path | None = None, opset: int = OPSET) -> ModelProto:
    """The graph of `part`, fit to be shipped; if it is over 2 GB, its weights are written to `folder`.

    Raises:
        EngineError: the graph breaks a rule of `scan`.
    """
    model = trace(part, folder, opset)
    scan(part.name, model, part.module, folder)
    del model.graph.value_info[:]
    return model


def write_graph(name: str, model: ModelProto, folder: Path) -> Graph:
    """Writes `model` to `folder` as `<name>.onnx`, with `<name>.onnx.data` if it is over 2 GB."""
    if is_external(model):
        casts = halved(model, folder, f"{name}.onnx.data", exactly_half)
        _put_first(casts, model)
    else:
        store_in_half(model)
    file = folder / f"{name}.onnx"
    save(model, file)
    return describe(file.name, model)


def describe(file: str, model: ModelProto) -> Graph:
    """What the manifest says of a graph."""
    return Graph(file=file, inputs=_tensors(model.graph.input), outputs=_tensors(model.graph.output))


def trace(part: Part, folder: Path | None = None, opset: int = OPSET) -> ModelProto:
    """The graph of `part`, its axes named and free of the tracer's notes."""
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            part.module.eval(),
            tuple(part.inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=dynamic_shapes(part),
            verbose=False,
        )
    assert program is not None
    if folder is not None:
        write_beside(program.model, folder, f"{part.name}.onnx.data", PROTOBUF_LIMIT)
    model: ModelProto = program.model_proto
    _name_axes(model, part)
    _strip(model)
    return model


def store_in_half(model: ModelProto) -> None:
    """Stores float32 weights as float16 with a cast behind, where not one value changes.

    Students keep their weights in half precision, so this halves the file; runtimes fold the casts
    when they load it.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALL:
            continue
        half = exactly_half(numpy_helper.to_array(tensor))
        if half is not None:
            casts.append(tensor.name)
            tensor.CopyFrom(numpy_helper.from_array(half, f"{tensor.name}.half"))
    _put_first(casts, model)


def exactly_half(values: npt.NDArray[Any]) -> npt.NDArray[np.float16] | None:
    """float32 values in float16, if not one changes."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None


def _put_first(halves: Sequence[str], model: ModelProto) -> None:
    """Casts of the weights `<name>.half` to `<name>`, before all other nodes."""
    widen = [
        helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.widen", to=TensorProto.FLOAT)
        for name in halves
    ]
    nodes = [*widen, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def dynamic_shapes(part: Part) -> tuple[Any, ...]:
    """As `torch.export` wants them: one entry per parameter, the variadic one a tuple."""
    dynamic = torch.export.Dim.DYNAMIC
    each = [dict.fromkeys(part.axes[name], dynamic) for name in part.inputs]
    parameters = inspect.signature(part.module.forward).parameters.values()
    named = sum(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters)
    return (*each[:named], tuple(each[named:])) if named < len(parameters) else tuple(each)


def _name_axes(model: ModelProto, part: Part) -> None:
    """Gives the tracer's symbols (`s48`) the names of the axes they stand for."""
    names = {
        entry.type.tensor_type.shape.dim[axis].dim_param: name
        for entry in model.graph.input
        for axis, name in part.axes[entry.name].items()
    }
    for entry in (*model.graph.input, *model.graph.output):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)


def _strip(model: ModelProto) -> None:
    """Stack traces of the tracer: as large as a small model, and they name paths of this machine."""
    del model.metadata_props[:]
    graph = model.graph
    for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""


def save(model: ModelProto, file: Path) -> None:
    if model.ByteSize() < PROTOBUF_LIMIT:
        file.write_bytes(model.SerializeToString(deterministic=True))
    else:
        onnx.save_model(
            model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=SMALL
        )


def _tensors(entries: Any) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=entry.name,
            dtype=helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type).name,
            shape=tuple(dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim),
        )
        for entry in entries
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the tracer's remarks about its own future and about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
