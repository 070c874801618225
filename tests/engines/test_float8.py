"""Products in float8: scales, rounding, and what is left alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from engines.export.float8 import FLOAT8, LARGEST, in_float8

WIDTH = 16


def two_products(first: np.ndarray, transposed: bool = False) -> ModelProto:
    """x -> x W1 -> relu -> x W2 (the last, which is left alone) -> y."""
    kind, attributes = ("Gemm", {"transB": 1}) if transposed else ("MatMul", {})
    stored = first.T.copy() if transposed else first
    nodes = [
        helper.make_node(kind, ["x", "w1"], ["p"], "first", **attributes),
        helper.make_node("Relu", ["p"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], "last"),
    ]
    weights = {"w1": stored, "w2": np.eye(WIDTH, dtype=np.float32)}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in "xy")
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "products", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def rounded(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(values / scale, -LARGEST, LARGEST).astype(FLOAT8).astype(np.float32) * scale


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@given(seed=st.integers(0, 2**31), transposed=st.booleans(), size=st.sampled_from([1e-3, 1.0, 1e3]))
@settings(max_examples=20, deadline=None)
def test_it_is_the_product_of_what_is_left_in_float8(seed: int, transposed: bool, size: float) -> None:
    weight, x = random(seed, WIDTH, WIDTH), random(seed + 1, 5, WIDTH) * np.float32(size)
    weight[:, 0] *= 100  # channels have scales of their own
    made = in_float8(two_products(weight, transposed), [{"x": x}])
    per_channel = (np.abs(weight).max(axis=0) / np.float32(LARGEST)).astype(np.float32)
    scale = np.float32(np.abs(x).max() / np.float32(LARGEST))
    expected = np.maximum(rounded(x, scale) @ rounded(weight, per_channel), 0)
    # A quotient that is rounded otherwise in the last bit may fall on the other side of a step of 1/16.
    found = run(made, x)
    assert (np.abs(found - expected) <= size * np.abs(weight).max(axis=0) / 8).all()
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)
    share = (
        1 + 2**-4
    ) ** 2 - 1  # two factors with three bits behind the point, and steps that are never finer
    largest = np.abs(x) @ np.abs(weight) * share + 1e-4 * np.abs(x).max() * np.abs(weight).sum(axis=0)
    assert (np.abs(found - np.maximum(x @ weight, 0)) <= largest).all()
    assert (found != np.maximum(x @ weight, 0)).any()


def test_scales_cover_all_that_was_seen_and_what_is_larger_is_cut() -> None:
    weight = np.eye(WIDTH, dtype=np.float32)
    small, large = random(0, 4, WIDTH), np.full((1, WIDTH), 7.0, np.float32)
    made = in_float8(two_products(weight), [{"x": small}, {"x": large}])
    scales = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer if t.name.endswith("scale")}
    assert scales["x.scale"] == pytest.approx(7 / LARGEST)
    np.testing.assert_allclose(run(made, large), large, rtol=1e-6)
    np.testing.assert_allclose(run(made, 10 * large), large, rtol=1e-6)


def test_what_is_always_zero_stays_zero() -> None:
    made = in_float8(two_products(np.zeros((WIDTH, WIDTH), np.float32)), [{"x": np.zeros((2, WIDTH), "f")}])
    assert not run(made, np.zeros((2, WIDTH), np.float32)).any()


def test_the_last_product_keeps_its_weight_and_others_lose_theirs() -> None:
    made = in_float8(two_products(random(0, WIDTH, WIDTH)), [{"x": random(1, 4, WIDTH)}])
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert kinds["w2"] == TensorProto.FLOAT
    assert "w1" not in kinds
    assert kinds["w1.float8"] == kinds["x.zero"] == kinds["w1.zero"] == TensorProto.FLOAT8E4M3FN
    counted = Counter(node.op_type for node in made.graph.node)
    assert (counted["QuantizeLinear"], counted["DequantizeLinear"]) == (1, 2)


def test_an_activation_of_several_products_is_rounded_once() -> None:
    model = two_products(random(0, WIDTH, WIDTH))
    model.graph.node.insert(1, helper.make_node("MatMul", ["x", "w3"], ["other"], "second"))
    model.graph.initializer.append(numpy_helper.from_array(random(2, WIDTH, WIDTH), "w3"))
    made = in_float8(model, [{"x": random(1, 4, WIDTH)}])
    counted = Counter(node.op_type for node in made.graph.node)
    assert (counted["QuantizeLinear"], counted["DequantizeLinear"]) == (1, 3)
    run(made, random(1, 4, WIDTH))
