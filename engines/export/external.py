"""Weights in a file beside the graph, written and read one at a time.

Protobuf holds no more than 2 GB, and memory should hold no weight twice: a large graph is a small one whose weights are
names of bytes in `<graph>.onnx.data`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

SMALL = 1024
"""Bytes; what is smaller stays in the graph."""

Array = npt.NDArray[Any]
Narrow = Callable[[Array], Array | None]


def write_beside(model: ir.Model, folder: Path, name: str, limit: int) -> None:
    """Moves the weights of a traced graph to `folder/name` if they are `limit` bytes or more."""
    weights = (value.const_value for value in model.graph.initializers.values())
    if sum(weight.nbytes for weight in weights if weight is not None) >= limit:
        ir.external_data.unload_from_model(model, folder, name, size_threshold_bytes=SMALL)


def is_external(model: ModelProto) -> bool:
    return any(uses_external_data(tensor) for tensor in model.graph.initializer)


def array_of(tensor: TensorProto, folder: Path | None = None) -> Array:
    """The values of a weight; one that lies in a file is mapped, not read."""
    if not uses_external_data(tensor):
        return ir.serde.deserialize_tensor(tensor).numpy()
    assert folder is not None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    shape, offset = tuple(tensor.dims), int(entries.get("offset", 0))
    return np.memmap(folder / entries["location"], dtype, "r", offset, shape)


def halved(model: ModelProto, folder: Path, name: str, narrow: Narrow) -> list[str]:
    """Writes the weights in `folder/name` anew, in float16 where `narrow` says what they are in it.

    Returns:
        Names of those that are: each is now called `<name>.half`.
    """
    found: list[str] = []
    fresh = folder / f".{name}"
    with fresh.open("wb") as stream:
        for tensor in model.graph.initializer:
            if not uses_external_data(tensor):
                continue
            values = array_of(tensor, folder)
            half = narrow(values) if tensor.data_type == TensorProto.FLOAT else None
            if half is not None:
                found.append(tensor.name)
                tensor.name, tensor.data_type = f"{tensor.name}.half", TensorProto.FLOAT16
            offset = stream.tell()
            (values if half is None else half).tofile(stream)
            _refer(tensor, location=name, offset=offset, length=stream.tell() - offset)
    fresh.replace(folder / name)
    return found


def _refer(tensor: TensorProto, **place: str | int) -> None:
    del tensor.external_data[:]
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))


def in_memory(model: ModelProto, folder: Path) -> ModelProto:
    """`model` with its weights inside; their file is removed."""
    if is_external(model):
        files = {entry.value for one in model.graph.initializer for entry in one.external_data[:1]}
        load_external_data_for_model(model, str(folder))
        for file in files:
            (folder / file).unlink()
    return model
