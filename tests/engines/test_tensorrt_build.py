"""TensorRT-RTX for real: it parses and compiles without a GPU, which is not the same as running."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.bundle import PARTS, SHIPPED, Bundle
from engines.errors import EngineError
from engines.export import export_student
from engines.runtime import generate, load_runtime
from engines.tensorrt.add import add_plans
from engines.tensorrt.build import build_plans, compile_graph, target_of
from engines.tensorrt.cuda import find_gpu
from engines.tensorrt.kit import MODULES, Kit, load_kit
from engines.tensorrt.plans import PlanFolder, find_plans, identity
from engines.tensorrt.profiles import Range

FAMILIES = ("sana", "sd3.5", "flux")


def gpu_here() -> bool:
    try:
        find_gpu()
    except EngineError:
        return False
    return True


@pytest.fixture(scope="module")
def rtx() -> Kit:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fewstep[tensorrt-rtx]'")
    return load_kit("tensorrt-rtx")


def assert_compiled(folder: PlanFolder, bundle: Bundle) -> None:
    assert set(folder.manifest.plans) == set(PARTS)
    for part, plan in folder.manifest.plans.items():
        assert plan.identity == identity(bundle, part, folder.manifest.target, plan.profiles)
        assert len(folder.read(part)) > 100_000, "a plan, not only its header"


@pytest.mark.slow
def test_every_part_of_the_shipped_model_compiles(rtx: Kit, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "bundle"
    folder = add_plans(SHIPPED / "shapes-sana-sid", "tensorrt-rtx", out=out, say=said.append)
    bundle = Bundle.load(out)
    assert folder.path == out / "tensorrt" / f"rtx-{rtx.version}"
    assert_compiled(folder, bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    if not gpu_here():
        assert said[0] == "the plans are compiled and not run: no GPU is here"
        assert folder.manifest.parity == ()
        with pytest.raises(EngineError, match="no GPU to be used here"):
            load_runtime(bundle, "tensorrt-rtx")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_of_every_family_compiles(
    rtx: Kit, family_bundle: Callable[[str], tuple[Path, Bundle]], tmp_path: Path, name: str
) -> None:
    shutil.copytree(family_bundle(name)[1].path, tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    assert_compiled(build_plans(bundle, rtx, None, say=lambda line: None), bundle)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "capabilities"),
    [
        ("bf16", ("8.0", "8.6", "8.9", "12.0")),
        ("int8-qdq", ("8.0", "8.6", "8.9", "12.0")),
        ("fp8-qdq", ("8.9", "12.0")),
    ],
)
def test_every_part_in_other_precisions_compiles(
    rtx: Kit, student: Path, tmp_path: Path, precision: str, capabilities: tuple[str, ...]
) -> None:
    """GPUs before Ada have no float8: plans in it are not made for them."""
    bundle = export_student(
        student,
        tmp_path / "bundle",
        precision=precision,
        batch_sizes=(1, 2),
        prompts=["a red circle", "a blue star"],
        say=lambda line: None,
    )
    folder = build_plans(bundle, rtx, None, say=lambda line: None)
    assert_compiled(folder, bundle)
    assert folder.manifest.target.capabilities == capabilities


def test_what_its_parser_refuses_is_named(rtx: Kit, tmp_path: Path) -> None:
    """Dynamic int8 is ONNX Runtime's own."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["y"]),
    ]
    weight = helper.make_tensor("w", TensorProto.INT8, [4, 4], np.ones(16, np.int8))
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["batch", 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    spans = {"x": Range(min=(1, 4), opt=(2, 4), max=(2, 4))}
    with pytest.raises(
        EngineError,
        match=r"tensorrt-rtx cannot read .*DynamicQuantizeLinear.*fp16, bf16, int8-qdq or fp8-qdq",
    ):
        compile_graph(rtx, model, tmp_path / "x.onnx", [spans], target_of(rtx, None, False))


@pytest.mark.skipif(gpu_here(), reason="with a GPU it may build")
def test_refittable_plans_are_not_compiled_without_a_gpu(rtx: Kit, tmp_path: Path) -> None:
    """TensorRT-RTX 1.7 asks for the driver then; what was there stays as it was."""
    shutil.copytree(SHIPPED / "shapes-sana-sid", tmp_path / "bundle")
    with pytest.raises(EngineError, match="builds refittable plans where their GPU is, and there is none"):
        add_plans(tmp_path / "bundle", "tensorrt-rtx", refittable=True, say=lambda line: None)
    assert not list((tmp_path / "bundle").glob("tensorrt/*"))


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_here(), reason="no GPU here")
@pytest.mark.parametrize("backend", MODULES)
def test_plans_draw_the_pictures_of_onnx_runtime(backend: str, tmp_path: Path) -> None:
    """`add_plans` compares every part and the pictures, at every batch size, before it keeps the plans."""
    pytest.importorskip(MODULES[backend], reason=f"pip install 'fewstep[{backend}]'")
    folder = add_plans(SHIPPED / "shapes-sana-sid", backend, out=tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    assert find_plans(bundle, backend, folder.manifest.target.version, find_gpu()).manifest.parity
    both = [load_runtime(bundle, one) for one in (backend, "onnxruntime-cpu")]
    for _ in range(2):  # the second time with CUDA graphs
        pictures = [generate(one, ["a red star"] * 3, [1, 2, 3], 4) for one in both]
        assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 2
