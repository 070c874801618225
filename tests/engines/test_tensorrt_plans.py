"""Which plans fit which machine and bundle, and what is said of those that do not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.bundle import PARTS, Bundle, Manifest
from engines.errors import EngineError
from engines.tensorrt import build
from engines.tensorrt.build import build_plans, target_of
from engines.tensorrt.cuda import Gpu
from engines.tensorrt.kit import Kit, load_kit, new_kit
from engines.tensorrt.plans import PlanFolder, Target, find_plans, has_plans, identity, open_plans
from engines.tensorrt.profiles import Range, axis_length, input_shapes, profiles
from engines.tensorrt.step import joined, load_graph

from .fake_gpu import FakeCuda, FakeTensorRT

HERE = Gpu("Fake GPU", "9.0")
TARGET = Target(backend="tensorrt", version="11.4", gpu="A", capabilities=("9.0",), flags=("STRONGLY_TYPED",))


@pytest.fixture
def copy(shipped: Bundle, plans: PlanFolder, tmp_path: Path) -> Bundle:
    shutil.copytree(shipped.path, tmp_path / "copy")
    return Bundle.load(tmp_path / "copy")


def changed(bundle: Bundle, **changes: Any) -> Bundle:
    manifest = Manifest.model_validate({**bundle.manifest.model_dump(), **changes})
    return Bundle(bundle.path, manifest, bundle.digest)


def rewrite(bundle: Bundle, change: Callable[[Any], object]) -> None:
    (file,) = bundle.path.glob("tensorrt/*/plans.json")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_plans_of_this_machine_are_found(copy: Bundle, plans: PlanFolder) -> None:
    found = find_plans(copy, "tensorrt", "11.4.0", HERE)
    assert found.manifest == plans.manifest
    assert found.path.name == "fake-gpu-11.4.0"
    assert found.read("decoder") == plans.read("decoder")
    assert has_plans(copy, "tensorrt")
    assert not has_plans(copy, "tensorrt-rtx")


@pytest.mark.parametrize(
    ("version", "gpu", "said"),
    [
        ("11.5.0", HERE, "those for Fake GPU are of version 11.4.0"),
        ("11.4.0", Gpu("Other GPU", "9.0"), "those of version 11.4.0 are for Fake GPU"),
        ("11.4.0", Gpu("Fake GPU", "8.9"), "those for Fake GPU run on compute capability 9.0"),
    ],
)
def test_plans_of_another_machine_are_refused_with_a_way_out(
    copy: Bundle, version: str, gpu: Gpu, said: str
) -> None:
    with pytest.raises(EngineError) as refusal:
        find_plans(copy, "tensorrt", version, gpu)
    assert f"no plans of tensorrt {version} for {gpu.name}" in str(refusal.value)
    assert said in str(refusal.value)
    assert str(refusal.value).endswith(f"make them with `fewstep build {copy.path} --backend tensorrt`")


def test_plans_of_another_graph_are_refused(copy: Bundle) -> None:
    files = {**copy.manifest.files, "denoiser.onnx": "0" * 64}
    with pytest.raises(EngineError, match="the plan of denoiser was made from another graph"):
        find_plans(changed(copy, files=files), "tensorrt", "11.4.0", HERE)
    with pytest.raises(EngineError, match="the plan of text_encoder was made from another graph"):
        rewrite(copy, lambda content: content["plans"].pop("text_encoder"))
        find_plans(copy, "tensorrt", "11.4.0", HERE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("target"), "target: Field required"),
        (lambda content: content.update(schema_version=2), "schema_version: "),
        (lambda content: content["plans"]["decoder"].update(profiles=[]), "plans.decoder.profiles: "),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(
    copy: Bundle, change: Callable[[Any], object], said: str
) -> None:
    rewrite(copy, change)
    with pytest.raises(EngineError) as refusal:
        find_plans(copy, "tensorrt", "11.4.0", HERE)
    assert said in str(refusal.value)


def test_an_altered_or_missing_plan_is_not_loaded(copy: Bundle) -> None:
    folder = find_plans(copy, "tensorrt", "11.4.0", HERE)
    file = folder.path / "decoder.plan"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"decoder\.plan does not match its digest"):
        folder.read("decoder")
    file.unlink()
    with pytest.raises(EngineError, match=r"decoder\.plan is missing"):
        folder.read("decoder")


def test_an_identity_is_of_everything_that_a_plan_is_made_of(shipped: Bundle) -> None:
    def of(bundle: Bundle = shipped, part: str = "denoiser", target: Target = TARGET, **shape: int) -> str:
        span = Range(min=(1,), opt=(shape.get("opt", 4),), max=(8,))
        return identity(bundle, part, target, [{"latents": span}])

    files = shipped.manifest.files
    others = [
        of(part="decoder"),
        of(opt=5),
        of(changed(shipped, files={**files, "denoiser.onnx": "1" * 64})),
        of(changed(shipped, files={**files, "denoiser.onnx.data": "1" * 64})),
        *[
            of(target=TARGET.model_copy(update=update))
            for update in (
                {"backend": "tensorrt-rtx"},
                {"version": "11.5"},
                {"gpu": "B"},
                {"capabilities": ("9.0", "10.0")},
                {"flags": ("STRONGLY_TYPED", "REFIT")},
            )
        ],
    ]
    assert len({of(), *others}) == 1 + len(others)
    assert of() == of(changed(shipped, files={**files, "decoder.onnx": "1" * 64})), "another part's graph"


def test_profiles_are_the_sizes_and_batches_of_the_bundle(shipped: Bundle) -> None:
    bundle = changed(shipped, sizes=[(64, 64), (96, 64)], batch_sizes=[2, 6])
    inputs = joined(bundle.manifest.graphs["denoiser"]).inputs
    square, oblong = profiles(bundle, "denoiser", inputs)
    assert square["source"] == Range(min=(1, 8, 8, 8), opt=(6, 8, 8, 8), max=(6, 8, 8, 8))
    assert oblong["clean"].max == (6, 8, 8, 12)
    assert oblong["prompt_embeds"] == Range(min=(1, 32, 128), opt=(6, 32, 128), max=(6, 32, 128))
    assert square["source_timestep"].max == (6,)
    text = bundle.manifest.graphs["text_encoder"].inputs
    assert len(profiles(bundle, "text_encoder", text)) == 1
    assert square["source"].holds((3, 8, 8, 8))
    assert not square["source"].holds((3, 8, 8, 12))
    assert not square["source"].holds((7, 8, 8, 8))
    assert not square["source"].holds((3, 8, 8))


def test_text_lengths_are_those_of_each_tokenizer(shipped: Bundle) -> None:
    """As SD3's export has them: two tokenizers of one length, a third that is joined to them."""
    text = [
        {"tokenizer": "a", "max_length": length, "template": "{prompt}", "lowercase": False}
        for length in (77, 77, 256)
    ]
    graph = shipped.manifest.graphs["text_encoder"].model_dump()
    axes = (
        ("input_ids", "text_length_2"),
        ("input_ids_2", "text_length_2"),
        ("input_ids_3", "text_length_3"),
    )
    graph["inputs"] = [{"name": name, "dtype": "int64", "shape": ["batch", axis]} for name, axis in axes]
    for output in graph["outputs"]:
        batch, _, *rest = output["shape"]
        output["shape"] = [batch, "text_length_2 + text_length_3", *rest]
    graphs = {**shipped.manifest.model_dump()["graphs"], "text_encoder": graph}
    bundle = changed(shipped, graphs=graphs, spec={**shipped.manifest.spec, "text": text})
    shapes = input_shapes(bundle, bundle.manifest.graphs["denoiser"].inputs, (64, 64), 2)
    assert shapes["prompt_embeds"] == (2, 333, 128)
    encoder = input_shapes(bundle, bundle.manifest.graphs["text_encoder"].inputs, (64, 64), 3)
    assert encoder == {"input_ids": (3, 77), "input_ids_2": (3, 77), "input_ids_3": (3, 256)}


@given(st.integers(1, 500), st.integers(1, 500))
def test_axes_are_worked_out(a: int, b: int) -> None:
    known = {"a": a, "b": b}
    assert axis_length(7, known) == 7
    assert axis_length("a", known) == a
    assert axis_length("2*((a//2)) + b", known) == 2 * (a // 2) + b
    assert axis_length("Max(0, a - Max(0, a - 11)) + 1", known) == max(0, a - max(0, a - 11)) + 1
    assert axis_length("Min(a, b)", known) == min(a, b)


@pytest.mark.parametrize(
    "axis", ["c", "a.real", "open('x')", "a +", "a ** 9", "Max(a, key=b)", "'a'", "a // 0"]
)
def test_axes_are_numbers_and_sums_and_nothing_else(axis: str) -> None:
    with pytest.raises(EngineError, match="expected a number or a sum of a, b"):
        axis_length(axis, {"a": 1, "b": 2})


def test_what_plans_are_made_for() -> None:
    fake = FakeTensorRT(FakeCuda())
    here = target_of(new_kit("tensorrt", fake), Gpu("NVIDIA H100 80GB HBM3", "9.0"), True)
    assert here.folder == "nvidia-h100-80gb-hbm3-11.4.0"
    assert here.flags == ("STRONGLY_TYPED", "REFIT")
    rtx = target_of(new_kit("tensorrt-rtx", FakeTensorRT(FakeCuda(), rtx=True)), None, False)
    assert rtx.folder == "rtx-11.4.0"
    assert rtx.capabilities == ("8.0", "8.6", "8.9", "12.0")


def test_refittable_plans_of_tensorrt_rtx_are_for_one_gpu(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its compiler (1.7.1) refuses to keep weights exchangeable in plans for several."""
    kit = new_kit("tensorrt-rtx", FakeTensorRT(FakeCuda(), rtx=True))
    ada, hopper = Gpu("NVIDIA GeForce RTX 4090", "8.9"), Gpu("NVIDIA H100", "9.0")
    target = target_of(kit, ada, True)
    assert (target.gpu, target.capabilities) == ("NVIDIA GeForce RTX 4090", ("8.9",))
    assert len(target_of(kit, ada, False).capabilities) == 4
    with pytest.raises(EngineError, match="has no compute capability 9.0"):
        build_plans(copy, kit, hopper, refittable=True, say=lambda line: None)


def test_a_failed_build_leaves_the_old_plans(copy: Bundle, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(copy.path.rglob("*"))

    def wrong(folder: PlanFolder) -> Any:
        assert sorted(file.name for file in folder.path.iterdir()) == [
            f"{part}.plan" for part in sorted(PARTS)
        ]
        raise EngineError("the plans do not match")

    monkeypatch.setenv("XDG_CACHE_HOME", str(copy.path.parent))
    with pytest.raises(EngineError, match="do not match"):
        build_plans(copy, kit, HERE, refittable=True, check=wrong, say=lambda line: None)
    assert sorted(copy.path.rglob("*")) == before
    again = build_plans(copy, kit, HERE, refittable=True, say=lambda line: None)
    assert again.manifest == open_plans(again.path).manifest
    assert sorted(copy.path.rglob("*")) == before


def test_timings_are_kept_from_build_to_build(
    copy: Bundle, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy.path.parent))
    build_plans(copy, kit, HERE, say=lambda line: None)
    (kept,) = (copy.path.parent / "fewstep/tensorrt").iterdir()
    assert kept.name == "fake-gpu-11.4.0.timing"
    assert kept.read_bytes() == b"timed " * 3


def test_what_cannot_be_built_is_said(copy: Bundle, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(gpu: Gpu | None = HERE) -> str:
        with pytest.raises(EngineError) as error:
            build_plans(copy, kit, gpu, say=lambda line: None)
        return str(error.value)

    assert "builds for the GPU of the machine, and there is none" in refusal(None)
    for kind, said in (
        ("Unbuildable", "tensorrt cannot build .*: no implementation of this"),
        (
            "MatMulInteger",
            "tensorrt cannot read .*: MatMulInteger: no such operator; export with a precision",
        ),
    ):
        model = load_graph(copy.path / "text_encoder.onnx")
        model.graph.node.add(op_type=kind)
        monkeypatch.setattr(build, "load_graph", lambda file, model=model: model)
        assert re.search(said, refusal())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    assert "not enough disk" in refusal()


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"tensorrt is not installed: pip install 'fewstep\[tensorrt\]'"):
        load_kit("tensorrt")
    with pytest.raises(EngineError, match="backend 'cudnn': expected tensorrt or tensorrt-rtx"):
        load_kit("cudnn")
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11 is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"installed, but cannot be imported: libnvinfer"):
        load_kit("tensorrt")
