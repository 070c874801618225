"""The denoiser's graph with the sampler's arithmetic around it, so that latents stay where they are.

Of a step at level t the sampler needs x = (1 - t) D + t e and, afterwards, D = x - t v, where the
noise e is either given or the one that the last input implies: e = (x' - (1 - t') D) / t'. Both are one
formula: given noise is an "input" at level t' = 1.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ..bundle import Graph

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
IN_FRONT = (
    ("Unsqueeze", ("timestep", "step.axes"), "step.t"),
    ("Unsqueeze", ("source_timestep", "step.axes"), "step.t_source"),
    ("Sub", ("step.one", "step.t"), "step.rest"),
    ("Sub", ("step.one", "step.t_source"), "step.rest_source"),
    ("Mul", ("step.rest_source", "clean"), "step.part_source"),
    ("Sub", ("source", "step.part_source"), "step.scaled_noise"),
    ("Div", ("step.scaled_noise", "step.t_source"), "step.noise"),
    ("Mul", ("step.rest", "clean"), "step.part_clean"),
    ("Mul", ("step.t", "step.noise"), "step.part_noise"),
    ("Add", ("step.part_clean", "step.part_noise"), "latents"),
)
BEHIND = (
    ("Mul", ("step.t", "velocity"), "step.way"),
    ("Sub", ("latents", "step.way"), "estimate"),
)


def load_graph(file: Path) -> ModelProto:
    """The graph; weights in files beside it stay there."""
    return onnx.load(file, load_external_data=False)


def join_sampler(model: ModelProto) -> None:
    """Replaces the denoiser's input `latents` by `source`, `source_timestep` and `clean`, all float32, and
    adds `latents` and `estimate` to its outputs."""
    graph = model.graph
    latents = next(entry for entry in graph.input if entry.name == "latents")
    velocity = next(entry for entry in graph.output if entry.name == "velocity")
    timestep = next(entry for entry in graph.input if entry.name == "timestep")
    renamed = [_renamed(latents, "source"), _renamed(timestep, "source_timestep"), _renamed(latents, "clean")]
    inputs = [*renamed, *(entry for entry in graph.input if entry.name != "latents")]
    nodes = [*map(_node, IN_FRONT), *graph.node, *map(_node, BEHIND)]
    outputs = [velocity, _renamed(latents, "latents"), _renamed(latents, "estimate")]
    for field, entries in ((graph.input, inputs), (graph.node, nodes), (graph.output, outputs)):
        _replace(field, entries)
    graph.initializer.extend(
        [
            helper.make_tensor("step.axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("step.one", TensorProto.FLOAT, [], [1.0]),
        ]
    )


def joined(graph: Graph) -> Graph:
    """What `join_sampler` makes of the graph's inputs and outputs."""
    named = {tensor.name: tensor for tensor in graph.inputs}
    latents, timestep = named["latents"], named["timestep"]
    renamed = [
        latents.model_copy(update={"name": "source"}),
        timestep.model_copy(update={"name": "source_timestep"}),
        latents.model_copy(update={"name": "clean"}),
    ]
    others = [tensor for tensor in graph.inputs if tensor.name != "latents"]
    outputs = [*graph.outputs, latents, latents.model_copy(update={"name": "estimate"})]
    return Graph(file=graph.file, inputs=(*renamed, *others), outputs=tuple(outputs))


def structure(model: ModelProto) -> str:
    """Digest of the graph without the values of its weights."""
    bare = ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if tensor.data_type in FLOATS:
            tensor.CopyFrom(TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type))
    return "sha256:" + hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def weights(file: Path, model: ModelProto) -> dict[str, Any]:
    """Arrays of the graph's weights by name; `model` is of `file`, which the weights may lie beside."""
    return {
        tensor.name: numpy_helper.to_array(tensor, str(file.parent)) for tensor in model.graph.initializer
    }


def _node(described: tuple[str, tuple[str, ...], str]) -> NodeProto:
    kind, inputs, output = described
    return helper.make_node(kind, inputs, [output], f"step.{output}")


def _renamed(entry: ValueInfoProto, name: str) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(entry)
    copy.name = name
    return copy


def _replace(field: Any, entries: list[Any]) -> None:
    """Entries are copied first: some are still in the field."""
    kept = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del field[:]
    field.extend(kept)
