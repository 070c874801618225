"""The whole generator after the text encoder as one graph: N denoiser calls, re-noising, decoding.

Made from the exported parts by renaming, not by tracing the loop, whose cost and weights would grow with
N. The weights stay where they are: the new file points at their bytes in the files of the parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data, uses_external_data

from ..bundle import Graph, SamplerSpec
from .trace import SMALL, describe

NOISE, PICTURES = "noise", "pictures"
INTO = ("latents", "timestep")


def write_fused(folder: Path, spec: SamplerSpec, steps: int) -> Graph:
    """Writes `generator-<steps>.onnx` beside the parts in `folder`.

    Its inputs are `noise` [K, B, C, H, W] and the conditioning; K is `steps` where every step has new
    noise, else 1. Its output is `pictures` [B, 3, H, W].
    """
    parts = {name: onnx.load(folder / f"{name}.onnx", load_external_data=False) for name in _PARTS}
    for name, model in parts.items():
        _leave_weights(model, folder / f"{name}.onnx")
    model = fuse(parts["denoiser"], parts["decoder"], spec, steps)
    file = folder / f"generator-{steps}.onnx"
    file.write_bytes(model.SerializeToString(deterministic=True))
    return describe(file.name, model)


_PARTS = ("denoiser", "decoder")


def fuse(denoiser: ModelProto, decoder: ModelProto, spec: SamplerSpec, steps: int) -> ModelProto:
    """One graph that does what `engines.runtime.sampler.sample` and the decoder do, step by step."""
    levels = spec.levels[steps]
    calls = _Copies("denoiser", denoiser)
    nodes = [*calls.constants(), *_noise_rows(steps if spec.renoise == "fresh" else 1)]
    constants: list[TensorProto] = []
    x = "noise.0"
    for step, level in enumerate(levels):
        at, here = f"step.{step}", {"level": level, "rest": 1 - level}
        constants += _scalars(at, {**here, **_next(levels, step)})
        nodes.append(helper.make_node("Expand", [f"{at}.level", "batch"], [f"{at}.time"], f"{at}.time"))
        nodes += calls.call(at, {"latents": x, "timestep": f"{at}.time"})
        nodes += _clean(at, x)
        if step + 1 < steps:
            nodes += _renoised(at, x, spec.renoise, step)
            x = f"{at}.x"
    pictures = _Copies("decoder", decoder)
    nodes += [*pictures.constants(), *pictures.call("", {"latents": f"step.{steps - 1}.clean"})]
    weights = [*calls.weights(), *pictures.weights(), *constants]
    return _model(nodes, weights, denoiser, decoder, steps if spec.renoise == "fresh" else 1)


class _Copies:
    """A graph whose nodes can be called several times; what depends on no input exists once."""

    def __init__(self, name: str, model: ModelProto) -> None:
        self._name, self._graph = name, model.graph
        self._fixed = {tensor.name for tensor in model.graph.initializer}
        self._once: list[NodeProto] = []
        self._each: list[NodeProto] = []
        for node in model.graph.node:
            constant = all(name in self._fixed for name in node.input if name)
            (self._once if constant else self._each).append(node)
            if constant:
                self._fixed.update(node.output)

    def weights(self) -> Iterator[TensorProto]:
        for tensor in self._graph.initializer:
            renamed = TensorProto()
            renamed.CopyFrom(tensor)
            renamed.name = f"{self._name}.{tensor.name}"
            yield renamed

    def constants(self) -> list[NodeProto]:
        return [self._renamed(node, "", {}) for node in self._once]

    def call(self, prefix: str, inputs: Mapping[str, str]) -> list[NodeProto]:
        """The nodes of one call; inputs that are not given are the whole graph's, outputs get `prefix`."""
        outer = {entry.name: entry.name for entry in self._graph.input} | dict(inputs)
        outer |= {
            entry.name: f"{prefix}.{entry.name}" if prefix else entry.name for entry in self._graph.output
        }
        return [self._renamed(node, prefix, outer) for node in self._each]

    def _renamed(self, node: NodeProto, prefix: str, outer: Mapping[str, str]) -> NodeProto:
        def rename(name: str) -> str:
            if not name or name in outer:
                return outer.get(name, "")
            return ".".join(filter(None, (self._name, "" if name in self._fixed else prefix, name)))

        renamed = NodeProto()
        renamed.CopyFrom(node)
        renamed.name = ".".join(filter(None, (self._name, prefix, node.name)))
        renamed.input[:] = map(rename, node.input)
        renamed.output[:] = map(rename, node.output)
        return renamed


def _noise_rows(count: int) -> Iterator[NodeProto]:
    yield helper.make_node("Shape", [NOISE], ["batch"], "batch", start=1, end=2)
    for row in range(count):
        index = numpy_helper.from_array(np.array(row, np.int64), f"row.{row}")
        yield helper.make_node("Constant", [], [f"row.{row}"], f"row.{row}", value=index)
        yield helper.make_node("Gather", [NOISE, f"row.{row}"], [f"noise.{row}"], f"noise.{row}", axis=0)


def _next(levels: tuple[float, ...], step: int) -> dict[str, float]:
    if step + 1 == len(levels):
        return {}
    return {"next_level": levels[step + 1], "next_rest": 1 - levels[step + 1]}


def _scalars(prefix: str, values: Mapping[str, float]) -> list[TensorProto]:
    return [
        numpy_helper.from_array(np.array([value], np.float32), f"{prefix}.{name}")
        for name, value in values.items()
    ]


def _clean(at: str, x: str) -> list[NodeProto]:
    """D = x - t v."""
    return _chain(
        at, ("Mul", [f"{at}.level", f"{at}.velocity"], "shift"), ("Sub", [x, f"{at}.shift"], "clean")
    )


def _renoised(at: str, x: str, renoise: str, step: int) -> list[NodeProto]:
    """x' = (1 - t') D + t' e with the noise of the next step, of the first, or the one that x implies."""
    implied: list[NodeProto] = []
    noise = f"noise.{step + 1}" if renoise == "fresh" else "noise.0"
    if renoise == "ddim":
        noise = f"{at}.noise"
        implied = _chain(
            at,
            ("Mul", [f"{at}.rest", f"{at}.clean"], "picture"),
            ("Sub", [x, f"{at}.picture"], "noisy"),
            ("Div", [f"{at}.noisy", f"{at}.level"], "noise"),
        )
    return implied + _chain(
        at,
        ("Mul", [f"{at}.next_rest", f"{at}.clean"], "kept"),
        ("Mul", [f"{at}.next_level", noise], "added"),
        ("Add", [f"{at}.kept", f"{at}.added"], "x"),
    )


def _chain(at: str, *operations: tuple[str, list[str], str]) -> list[NodeProto]:
    return [
        helper.make_node(kind, inputs, [f"{at}.{out}"], f"{at}.{out}") for kind, inputs, out in operations
    ]


def _model(
    nodes: Iterable[NodeProto],
    weights: Iterable[TensorProto],
    denoiser: ModelProto,
    decoder: ModelProto,
    rows: int,
) -> ModelProto:
    latents = next(entry for entry in denoiser.graph.input if entry.name == "latents")
    sides = [dim.dim_param or dim.dim_value for dim in latents.type.tensor_type.shape.dim]
    noise = helper.make_tensor_value_info(NOISE, TensorProto.FLOAT, [rows, *sides])
    conditioning = [entry for entry in denoiser.graph.input if entry.name not in INTO]
    graph = helper.make_graph(
        list(nodes), "generator", [noise, *conditioning], list(decoder.graph.output), list(weights)
    )
    imports = list(denoiser.opset_import)
    return helper.make_model(graph, opset_imports=imports, ir_version=denoiser.ir_version)


def _leave_weights(model: ModelProto, file: Path) -> None:
    """Large weights become references to their bytes in `file`."""
    content = file.read_bytes()
    for tensor in model.graph.initializer:
        if uses_external_data(tensor) or len(tensor.raw_data) < SMALL:
            continue
        length = len(tensor.raw_data)
        set_external_data(tensor, file.name, content.index(tensor.raw_data), length)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
