"""New weights for old plans: all of them, or none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.bundle import Bundle, Manifest, sha256
from engines.errors import EngineError
from engines.runtime import generate
from engines.runtime.onnx import OnnxRuntime
from engines.runtime.tensorrt import TensorRTRuntime
from engines.tensorrt.build import build_plans, graph_of
from engines.tensorrt.cuda import Gpu, Stream
from engines.tensorrt.kit import Kit
from engines.tensorrt.plans import PlanFolder, Plans, find_plans
from engines.tensorrt.refit import refit, refit_plans
from engines.tensorrt.step import structure, weights

from . import fake_gpu
from .fake_gpu import FakeCuda

HERE = Gpu("Fake GPU", "9.0")


def with_graph(bundle: Bundle, part: str, change: Any) -> Bundle:
    """The bundle with another graph, whose digest is right."""
    file = bundle.path / f"{part}.onnx"
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    files = {**bundle.manifest.files, file.name: sha256(file)}
    manifest = Manifest.model_validate({**bundle.manifest.model_dump(), "files": files})
    return Bundle(bundle.path, manifest, bundle.digest)


def darker(model: onnx.ModelProto) -> None:
    """Halves the weights of the decoder's last convolution."""
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    names = set(last.input[1:]) | {f"{name}.half" for name in last.input[1:]}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((value / 2).astype(value.dtype), tensor.name))


@pytest.fixture
def other(shipped: Bundle, tmp_path: Path) -> Bundle:
    """Another student of the same architecture, without plans."""
    shutil.copytree(shipped.path, tmp_path / "other", ignore=shutil.ignore_patterns("tensorrt"))
    return with_graph(Bundle.load(tmp_path / "other"), "decoder", darker)


def unchecked(folder: PlanFolder) -> Plans:
    return folder.manifest


def test_refitted_plans_draw_the_new_pictures(
    other: Bundle, plans: PlanFolder, kit: Kit, cuda: FakeCuda
) -> None:
    refit_plans(other, plans, kit, check=unchecked, say=lambda line: None)
    folder = find_plans(other, "tensorrt", "11.4.0", HERE)
    found = generate(TensorRTRuntime(other, folder, kit, Stream(cuda)), ["a red star"], [1], 1)
    expected = generate(OnnxRuntime(other, threads=1), ["a red star"], [1], 1)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert folder.manifest.plans["decoder"].identity != plans.manifest.plans["decoder"].identity
    assert folder.manifest.plans["decoder"].structure == plans.manifest.plans["decoder"].structure


def test_a_weight_without_a_value_is_named(
    other: Bundle, plans: PlanFolder, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_gpu.Refitter, "keep", tuple(f"lost.{number}" for number in range(12)))
    with pytest.raises(EngineError, match=r"incomplete: the new graph has no lost\.0, .*lost\.9 and 2 more"):
        refit_plans(other, plans, kit, check=unchecked, say=lambda line: None)
    assert not list(other.path.glob("tensorrt/*"))


def test_a_weight_that_is_refused_or_of_another_size_is_named(
    shipped: Bundle, plans: PlanFolder, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph = graph_of(shipped, "decoder")
    values = weights(shipped.path / graph.file, model)
    engine = kit.trt.Runtime(kit.logger).deserialize_cuda_engine(plans.read("decoder"))
    assert engine is not None
    floats = [name for name, value in values.items() if value.dtype in (np.float16, np.float32)]
    with pytest.raises(EngineError, match=f"of another size: {floats[0]}"):
        refit(engine, kit, {**values, floats[0]: np.zeros(3, np.float32)}, "decoder")
    monkeypatch.setattr(fake_gpu.Refitter, "set_named_weights", lambda self, name, weights: False)
    with pytest.raises(EngineError, match="incomplete: tensorrt refuses"):
        refit(engine, kit, values, "decoder")
    monkeypatch.setattr(fake_gpu.Refitter, "set_named_weights", lambda self, name, weights: True)
    with pytest.raises(EngineError, match="incomplete: still missing:"):
        refit(engine, kit, values, "decoder")


def test_plans_that_were_not_built_for_it_are_not_refitted(
    shipped: Bundle, other: Bundle, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shutil.copytree(shipped.path, tmp_path / "rigid")
    rigid = build_plans(Bundle.load(tmp_path / "rigid"), kit, HERE, say=lambda line: None)
    with pytest.raises(EngineError, match="text_encoder cannot be refitted: build it with --refittable"):
        refit_plans(other, rigid, kit, check=unchecked, say=lambda line: None)


def test_another_structure_is_built_and_not_refitted(other: Bundle, plans: PlanFolder, kit: Kit) -> None:
    deeper = with_graph(other, "denoiser", lambda model: model.graph.node.add(op_type="Identity"))
    with pytest.raises(EngineError, match="the graph of denoiser is not the one of .*: build the plans"):
        refit_plans(deeper, plans, kit, check=unchecked, say=lambda line: None)


def test_a_structure_is_everything_but_the_values_of_weights(shipped: Bundle) -> None:
    model, _ = graph_of(shipped, "decoder")
    before = structure(model)
    darker(model)
    assert structure(model) == before
    shape = next(one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT64)
    shape.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(shape) + 1, shape.name))
    assert structure(model) != before
