from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.bundle import Bundle
from engines.errors import EngineError
from engines.export import trace
from engines.export.scan import findings, foreign_constants, scan
from engines.export.trace import store_in_half


def graph(
    nodes: list[NodeProto], elem_type: int = TensorProto.FLOAT, axis: str = "batch", **weights
) -> ModelProto:
    """A model from `x` to `y`, both [axis, 64]."""
    x, y = (helper.make_tensor_value_info(name, elem_type, [axis, 64]) for name in "xy")
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "test", [x], [y], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def only_finding(model: ModelProto) -> str:
    (finding,) = findings(model)
    return finding


def test_a_clean_graph_passes():
    assert not list(findings(graph([helper.make_node("Relu", ["x"], ["y"])])))


def test_exported_graphs_are_clean(bundle: Bundle):
    for part in bundle.manifest.graphs.values():
        assert not list(findings(onnx.load(bundle.path / part.file)))


def test_double_precision_is_found_in_inputs_constants_and_casts():
    relu = helper.make_node("Relu", ["x"], ["y"])
    assert any("x is float64" in finding for finding in findings(graph([relu], TensorProto.DOUBLE)))
    assert "constant w is float64" in only_finding(graph([relu], w=np.zeros(1)))
    casts = [helper.make_node("Cast", ["x"], ["d"], "up", to=TensorProto.DOUBLE)]
    assert "up casts to float64" in only_finding(graph([*casts, relu]))


def test_sequences_are_found():
    nodes = [helper.make_node("SplitToSequence", ["x"], ["s"], "cut"), helper.make_node("Relu", ["x"], ["y"])]
    assert "cut is a SplitToSequence" in only_finding(graph(nodes))


@pytest.mark.parametrize("name", ["s48", "2*((s75//2))", "unk__3"])
def test_axes_with_the_tracers_names_are_found(name):
    found = list(findings(graph([helper.make_node("Relu", ["x"], ["y"])], axis=name)))
    assert len(found) == 2
    assert f"axis 0 of x has no name ({name})" in found[0]


def test_constants_that_are_not_finite_are_found_but_a_mask_may_hold_minus_infinity():
    add = helper.make_node("Add", ["x", "w"], ["y"])
    assert "constant w is not finite" in only_finding(graph([add], w=np.float32([np.nan])))
    assert "constant w is not finite" in only_finding(graph([add], w=np.float32([np.inf])))
    assert not list(findings(graph([add], w=np.float32([-np.inf]))))


def division(*guard: NodeProto, by: str) -> ModelProto:
    total = helper.make_node("ReduceSum", ["x"], ["total"], "total", keepdims=1)
    moved = helper.make_node("Transpose", ["total"], ["moved"], "moved")
    return graph(
        [total, moved, *guard, helper.make_node("Div", ["x", by], ["y"], "share")], eps=np.float32([1e-15])
    )


def test_a_division_by_a_bare_sum_is_found_and_a_guarded_one_is_not():
    assert "share divides by a bare ReduceSum" in only_finding(division(by="moved"))
    assert not list(findings(division(helper.make_node("Clip", ["moved", "eps"], ["safe"]), by="safe")))


def test_scan_names_the_graph():
    relu = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(EngineError, match="graph denoiser: constant w is not finite"):
        scan("denoiser", graph([relu], w=np.float32([np.nan])), torch.nn.Identity())


def normalisation(*guard: NodeProto, root_of: str) -> ModelProto:
    mean = helper.make_node("ReduceMean", ["x"], ["mean"], "mean", keepdims=1)
    root = helper.make_node("Sqrt", [root_of], ["root"], "root")
    nodes = [mean, *guard, root, helper.make_node("Div", ["x", "root"], ["y"], "normal")]
    return graph(nodes, eps=np.float32([1e-6]))


def test_a_root_of_a_bare_mean_is_found_and_a_guarded_one_is_not():
    assert "root is the root of a bare ReduceMean" in only_finding(normalisation(root_of="mean"))
    guarded = normalisation(helper.make_node("Add", ["mean", "eps"], ["safe"]), root_of="safe")
    assert not list(findings(guarded))


@pytest.mark.parametrize(("epsilon", "found"), [(0.0, True), (1e-6, False)])
def test_a_normalisation_without_epsilon_is_found(epsilon: float, found: bool):
    node = helper.make_node("LayerNormalization", ["x", "w"], ["y"], "norm", epsilon=epsilon)
    assert bool(list(findings(graph([node], w=np.ones(64, np.float32))))) == found


@pytest.mark.parametrize(
    ("kind", "found"),
    [(TensorProto.BFLOAT16, True), (TensorProto.FLOAT16, False), (TensorProto.FLOAT, False)],
)
def test_an_einsum_in_bfloat16_is_found(kind: int, found: bool):
    model = graph([helper.make_node("Einsum", ["h"], ["y"], "sum", equation="ij->ij")])
    model.graph.value_info.append(helper.make_tensor_value_info("h", kind, ["batch", 64]))
    assert bool(list(findings(model))) == found


def test_large_constants_in_bfloat16_have_to_be_weights_too():
    layer = torch.nn.Linear(64, 32).bfloat16()
    narrow = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    weight = layer.weight.detach().float().numpy().astype(narrow)
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    assert not list(foreign_constants(graph(nodes, a=weight, b=weight.T.copy()), layer))
    assert list(foreign_constants(graph(nodes, a=weight + weight), layer))
    broken = weight.copy()
    broken[0, 0] = np.nan
    assert "constant a is not finite" in only_finding(graph(nodes, a=broken))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_large_constants_have_to_be_weights_as_they_are_or_transposed(kind: torch.dtype):
    layer = torch.nn.Linear(64, 32).to(kind)
    layer.register_buffer("table", torch.rand(40, 40, dtype=kind), persistent=False)
    weight, table = layer.weight.detach().numpy(), layer.get_buffer("table").numpy()
    small = np.arange(9, dtype=np.float32)
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    assert not list(foreign_constants(graph(nodes, a=weight, b=weight.T, c=table, d=small), layer))
    (finding,) = foreign_constants(graph(nodes, a=weight * 2), layer)
    assert finding == "constant a [32, 64] is no weight of the network"


def run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def test_half_storage_changes_nothing_and_skips_what_would_change():
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((64, 64)).astype(np.float16).astype(np.float32)
    inexact = rng.standard_normal((64, 64)).astype(np.float32)
    huge = np.full((64, 64), 1e6, np.float32)
    small = exact[:2]
    names = ["exact", "inexact", "huge"]
    nodes = [helper.make_node("Sum", names, ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = graph(nodes, exact=exact, inexact=inexact, huge=huge, small=small)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    before, size = run(model, x), model.ByteSize()
    store_in_half(model)
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert [name for name, kind in stored.items() if kind == TensorProto.FLOAT16] == ["exact.half"]
    assert np.array_equal(run(model, x), before)
    assert size - model.ByteSize() > exact.nbytes / 2 - 200


def test_exported_weights_are_stored_in_half_precision(bundle: Bundle):
    for part in bundle.manifest.graphs.values():
        kinds = [
            tensor.data_type
            for tensor in onnx.load(bundle.path / part.file).graph.initializer
            if np.prod(tensor.dims) >= trace.SMALL
        ]
        assert kinds.count(TensorProto.FLOAT16) > 0.8 * len(kinds)


def test_graphs_over_the_protobuf_limit_keep_their_weights_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trace, "PROTOBUF_LIMIT", 100)
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], w=weights)
    x = np.ones((2, 64), np.float32)
    expected = run(model, x)
    trace.save(model, tmp_path / "part.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["part.onnx", "part.onnx.data"]
    assert np.array_equal(ort.InferenceSession(tmp_path / "part.onnx").run(None, {"x": x})[0], expected)
