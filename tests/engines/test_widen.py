"""Graphs in bfloat16, which ONNX Runtime does not run on a CPU, as float32 with every result rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.errors import EngineError
from engines.runtime.onnx import CPU
from engines.widen import open_widened, widened

BF16 = TensorProto.BFLOAT16
NUMPY = helper.tensor_dtype_to_np_dtype(BF16)


def graph(nodes: list[NodeProto], outside: Path | None = None, **weights: np.ndarray) -> ModelProto:
    """A model from `x` to `y`, both float32 [batch, 8]; with `outside` its weights lie in a file there."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in "xy")
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "test", [x], [y], initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    if outside:
        onnx.save_model(model, outside, save_as_external_data=True, location="w.data", size_threshold=0)
    return model


def chain() -> list[NodeProto]:
    """y = (x W + b) c, all in bfloat16."""
    return [
        helper.make_node("Cast", ["x"], ["h"], "down", to=BF16),
        helper.make_node("MatMul", ["h", "w"], ["p"], "product"),
        helper.make_node("Add", ["p", "b"], ["s"], "sum"),
        helper.make_node("Constant", [], ["c"], "c", value=numpy_helper.from_array(np.full(8, 1.37, NUMPY))),
        helper.make_node("Mul", ["s", "c"], ["m"], "scaled"),
        helper.make_node("Cast", ["m"], ["y"], "up", to=TensorProto.FLOAT),
    ]


def weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((8, 8)).astype(NUMPY), "b": rng.standard_normal(8).astype(NUMPY)}


def step_by_step(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    def rounded(value: np.ndarray) -> np.ndarray:
        return value.astype(NUMPY).astype(np.float32)

    w, b, c = w.astype(np.float32), b.astype(np.float32), np.float32(NUMPY.type(1.37))
    return rounded(rounded(rounded(rounded(x) @ w) + b) * c)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-20, 1.0, 1e4, 1e20]))
@settings(max_examples=20, deadline=None)
def test_every_result_is_rounded(seed: int, scale: float) -> None:
    held = weights(seed)
    x = np.random.default_rng(seed).standard_normal((3, 8), np.float32) * np.float32(scale)
    session = ort.InferenceSession(widened(graph(chain(), **held)).SerializeToString())
    (found,) = session.run(None, {"x": x})
    expected = step_by_step(x, **held)
    # A sum in another order may round to the next value, which is 2^-8 away.
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=scale * 2**-7)
    assert np.mean(found == expected) > 0.9
    assert np.array_equal(found, found.astype(NUMPY).astype(np.float32))


def test_it_is_what_pytorch_computes_in_bfloat16() -> None:
    held = weights(0)
    w, b = (torch.from_numpy(held[name].astype(np.float32)).bfloat16() for name in "wb")
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    expected = (((x.bfloat16() @ w) + b) * torch.tensor(1.37, dtype=torch.bfloat16)).float()
    (found,) = ort.InferenceSession(widened(graph(chain(), **held)).SerializeToString()).run(
        None, {"x": x.numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=2**-7, atol=2**-7)


def test_onnx_runtime_still_refuses_the_graph_itself() -> None:
    """Should it come to run bfloat16 on a CPU, `engines/widen.py` can go."""
    model = graph(chain(), **weights(0))
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        ort.InferenceSession(model.SerializeToString(), providers=[CPU])


def test_a_graph_without_bfloat16_is_left_alone() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"], "relu")])
    assert widened(model) is model


def test_the_graph_that_was_given_keeps_its_types() -> None:
    model = graph(chain(), **weights(0))
    before = model.SerializeToString()
    assert widened(model).SerializeToString() != before
    assert model.SerializeToString() == before


def test_weights_beside_the_graph_stay_there(tmp_path: Path) -> None:
    held = weights(1)
    graph(chain(), tmp_path / "part.onnx", **held)
    content = (tmp_path / "w.data").read_bytes()
    call = open_widened(tmp_path / "part.onnx", 1, CPU)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["part.onnx", "w.data"]
    assert (tmp_path / "w.data").read_bytes() == content
    x = np.random.default_rng(1).standard_normal((3, 8), np.float32)
    np.testing.assert_allclose(call({"x": x, "other": x})["y"], step_by_step(x, **held), rtol=0.01, atol=0.02)


def test_group_normalisation_is_rounded_though_its_type_is_not_inferred() -> None:
    """The decoders of SD3 and FLUX are full of it."""
    one, half = np.ones(8, NUMPY), np.full(8, 0.5, NUMPY)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "down", to=BF16),
        helper.make_node(
            "GroupNormalization", ["h", "scale", "shift"], ["n"], "norm", num_groups=2, epsilon=1e-6
        ),
        helper.make_node("Add", ["n", "n"], ["s"], "sum"),
        helper.make_node("Cast", ["s"], ["y"], "up", to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8, 5]) for name in "xy")
    held = [numpy_helper.from_array(one, "scale"), numpy_helper.from_array(half, "shift")]
    model = helper.make_model(
        helper.make_graph(nodes, "norm", [x], [y], held),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    value = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    (found,) = ort.InferenceSession(widened(model).SerializeToString()).run(None, {"x": value.numpy()})
    rounded = value.bfloat16().float()
    normal = torch.nn.functional.group_norm(rounded, 2, torch.ones(8), torch.full((8,), 0.5), 1e-6)
    expected = (2 * normal.bfloat16().float()).numpy()
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=2**-7)
    assert np.array_equal(found, found.astype(NUMPY).astype(np.float32))


def test_a_result_of_unknown_type_is_refused() -> None:
    """It could not be said whether it is to be rounded."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "down", to=BF16),
        helper.make_node("Unheard", ["h"], ["u"], "odd", domain="elsewhere"),
        helper.make_node("Cast", ["u"], ["y"], "up", to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in "xy")
    imports = [helper.make_opsetid("", 22), helper.make_opsetid("elsewhere", 1)]
    model = helper.make_model(helper.make_graph(nodes, "odd", [x], [y]), opset_imports=imports)
    with pytest.raises(EngineError, match="node odd: the type of u cannot be inferred"):
        widened(model)
