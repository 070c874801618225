"""Half precision, eight bits, and the choice among them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto

from engines.bundle import Bundle, SamplerSpec
from engines.errors import EngineError
from engines.export import choice, export_student
from engines.export.choice import Candidate, choose
from engines.export.graphs import Part, parts_of
from engines.export.half import in_half, islands_of
from engines.export.make import Wish
from engines.export.precision import PRECISIONS, precision_named
from engines.export.probe import SHAPES, probe
from engines.export.quantize import denoiser_feeds, with_dynamic_scales, with_fixed_scales
from engines.export.reference import TorchNetworks
from engines.export.student import Student, load_student
from engines.export.trace import trace_part
from engines.runtime import choices, generate, load_runtime
from engines.runtime.onnx import OnnxNetworks
from engines.runtime.sampler import sample
from engines.widen import open_widened

SIZE = (64, 64)


@pytest.fixture(scope="module")
def loaded(student: Path) -> Student:
    return load_student(student)


@pytest.fixture(scope="module")
def parts(loaded: Student) -> dict[str, Part]:
    return {part.name: part for part in parts_of(loaded.family, loaded.spec, loaded.pipeline)}


@pytest.fixture(scope="module")
def denoiser(parts: dict[str, Part]) -> ModelProto:
    return trace_part(parts["denoiser"])


@pytest.fixture(scope="module")
def feeds(loaded: Student) -> list[dict[str, np.ndarray]]:
    spec = SamplerSpec.model_validate(loaded.spec.model_dump(mode="json"))
    networks = TorchNetworks(loaded.family, loaded.spec, loaded.pipeline)
    return denoiser_feeds(networks, spec, ["a red circle", "a blue star"], SIZE)


def run(model: ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, {entry.name: feed[entry.name] for entry in session.get_inputs()})[0]


def off(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", ["text_encoder", "denoiser", "decoder"])
@torch.no_grad()
def test_half_precision_is_near_and_leaves_the_part_alone(parts: dict[str, Part], name: str) -> None:
    part = parts[name]
    before = part.module(*part.inputs.values())
    half = in_half(part, torch.float16)
    found = half.module(*half.inputs.values())
    pairs = [(before, found)] if isinstance(before, torch.Tensor) else list(zip(before, found, strict=True))
    for expected, value in pairs:
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=0, atol=0.01 * float(expected.abs().max()))
    assert not torch.equal(pairs[0][0], pairs[0][1])
    again = part.module(*part.inputs.values())
    assert torch.equal(again if isinstance(again, torch.Tensor) else again[0], pairs[0][0])
    assert all(weight.dtype == torch.float32 for weight in part.module.parameters())


def test_islands_are_the_norms_and_the_last_layer(parts: dict[str, Part]) -> None:
    named = {name: islands_of(in_half(part, torch.float16)) for name, part in parts.items()}
    assert named["denoiser"] == ("transformer.proj_out",)
    assert all("norm" in name or "conv_out" in name for name in named["decoder"])
    assert named["text_encoder"]
    assert all("norm" in name for name in named["text_encoder"])


@pytest.mark.slow
def test_a_half_graph_computes_in_half_and_keeps_its_inputs(parts: dict[str, Part]) -> None:
    model = trace_part(in_half(parts["denoiser"], torch.float16))
    ends = [entry.type.tensor_type.elem_type for entry in (*model.graph.input, *model.graph.output)]
    assert TensorProto.FLOAT16 not in ends
    weights = Counter(t.data_type for t in model.graph.initializer if np.prod(t.dims) > 1024)
    assert weights[TensorProto.FLOAT16] > 0.8 * weights.total()


def test_int8_quantises_the_products_with_weights_but_the_last(
    denoiser: ModelProto, feeds: list[dict[str, np.ndarray]]
) -> None:
    quantised = with_dynamic_scales(denoiser)
    kinds = Counter(node.op_type for node in quantised.graph.node)
    weights = {tensor.name for tensor in denoiser.graph.initializer}
    products = [n for n in denoiser.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in weights]
    assert kinds["MatMulInteger"] == len(products) - 1
    assert 1e-5 < off(run(quantised, feeds[0]), run(denoiser, feeds[0])) < 0.1


def test_fixed_scales_are_symmetric_and_do_not_depend_on_the_batch(
    denoiser: ModelProto, feeds: list[dict[str, np.ndarray]]
) -> None:
    quantised = with_fixed_scales(denoiser, feeds)
    kinds = Counter(node.op_type for node in quantised.graph.node)
    assert kinds["QuantizeLinear"]
    assert not kinds["DynamicQuantizeLinear"] + kinds["MatMulInteger"]
    points = [t for t in quantised.graph.initializer if t.name.endswith("zero_point")]
    assert points
    assert {t.data_type for t in points} == {TensorProto.INT8}
    assert not any(onnx.numpy_helper.to_array(t).any() for t in points)
    whole = run(quantised, feeds[-1])
    first = run(quantised, {name: value[:1] for name, value in feeds[-1].items()})
    np.testing.assert_allclose(whole[:1], first, atol=1e-5)
    assert 1e-5 < off(whole, run(denoiser, feeds[-1])) < 0.2


def test_calibration_sees_every_step_of_every_step_count(
    loaded: Student, feeds: list[dict[str, np.ndarray]]
) -> None:
    times = [float(feed["timestep"][0]) for feed in feeds]
    assert times == [level for row in loaded.spec.levels.values() for level in row]


def test_a_graph_that_is_right_where_it_was_traced_only_is_refused(
    parts: dict[str, Part], denoiser: ModelProto
) -> None:
    probe(parts["denoiser"], denoiser, 1e-4)
    wrong = ModelProto()
    wrong.CopyFrom(denoiser)
    bias = next(t for t in wrong.graph.initializer if t.name.endswith("proj_out.bias"))
    values = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    with pytest.raises(EngineError, match=r"graph denoiser is off by .* at latents \[1, 8, 8, 8\]"):
        probe(parts["denoiser"], wrong, 1e-4)


def test_a_graph_that_cannot_run_elsewhere_is_refused(parts: dict[str, Part], denoiser: ModelProto) -> None:
    fixed = ModelProto()
    fixed.CopyFrom(denoiser)
    for entry in fixed.graph.input:
        if entry.name == "latents":
            entry.type.tensor_type.shape.dim[2].dim_value = 8
    with pytest.raises(EngineError, match=r"graph denoiser cannot be run at latents \[2, 8, 10, 8\]"):
        probe(parts["denoiser"], fixed, 1e-4)


def test_probes_vary_every_axis() -> None:
    assert len(SHAPES) >= 4
    assert all(len(set(axis)) > 1 for axis in zip(*SHAPES, strict=True))


@pytest.mark.parametrize("name", ["fp8", "int3", "", "FP16"])
def test_precisions_that_are_not_there_list_those_that_are(name: str) -> None:
    with pytest.raises(EngineError, match="expected one of fp32, fp16, bf16, int8, int8-qdq, fp8-qdq, auto"):
        precision_named(name)


@pytest.mark.slow
def test_a_half_bundle_is_certified_and_names_its_islands(student: Path, tmp_path: Path) -> None:
    bundle = export_student(
        student, tmp_path / "b", precision="fp16", batch_sizes=(1, 2), say=lambda line: None
    )
    assert bundle.manifest.precision == "fp16"
    assert bundle.manifest.islands["denoiser"] == ("transformer.proj_out",)
    assert bundle.manifest.certificate.failures() == []
    bounds = PRECISIONS["fp16"].tolerance
    assert bundle.manifest.certificate.tolerance == {
        part: bounds[part] for part in bounds if part not in ("fused", "torch")
    }


@pytest.fixture(scope="module")
def bf16(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bf16") / "bundle"
    return export_student(
        student, out, precision="bf16", batch_sizes=(1, 2), fuse=True, torch=True, say=lambda line: None
    )


@pytest.mark.slow
def test_bfloat16_is_certified_with_every_result_rounded(bf16: Bundle) -> None:
    manifest = bf16.manifest
    assert manifest.certificate.failures() == []
    assert manifest.certificate.runtime.endswith(
        "on CPU, each operation in float32 and its result rounded to bfloat16"
    )
    assert (manifest.precision, manifest.opset) == ("bf16", 22)
    assert manifest.islands["denoiser"] == ("transformer.proj_out",)
    worst = {one.part: one.relative for one in manifest.certificate.measurements}
    assert worst["denoiser"] > 1e-3, "in float32 it would be far nearer"
    assert worst["torch"] > 1e-3
    assert not list(bf16.path.glob(".*")), "widened graphs are not left behind"


@pytest.mark.slow
def test_its_graphs_compute_in_bfloat16_and_are_valid(bf16: Bundle) -> None:
    for part in ("text_encoder", "denoiser", "decoder"):
        model = onnx.load(bf16.path / f"{part}.onnx")
        onnx.checker.check_model(model, full_check=True)
        kinds = Counter(t.data_type for t in model.graph.initializer if np.prod(t.dims) > 1024)
        assert kinds[TensorProto.BFLOAT16] > 0.8 * kinds.total()
        ends = [entry.type.tensor_type.elem_type for entry in (*model.graph.input, *model.graph.output)]
        assert TensorProto.BFLOAT16 not in ends


@pytest.mark.slow
def test_onnx_runtime_on_a_cpu_says_what_runs_it_and_pytorch_does(bf16: Bundle) -> None:
    message = "ONNX Runtime does not run bf16 on a CPU: take a GPU, or export the student with --torch"
    for backend in ("auto", "onnxruntime-cpu"):
        with pytest.raises(EngineError, match=message):
            load_runtime(bf16, backend)
    assert message in choices(bf16)["onnxruntime-cpu"]
    pictures = generate(load_runtime(bf16, "torch", threads=1), ["a red circle"], [1], 2)
    networks = OnnxNetworks(bf16.path, bf16.spec, threads=1, opened=open_widened)
    expected = networks.decode(sample(networks, bf16.spec, ["a red circle"], [1], 2, SIZE))
    assert np.mean(np.abs(pictures.astype(int) - expected)) < 4


@pytest.mark.slow
def test_a_float8_bundle_is_calibrated_certified_and_runs(student: Path, tmp_path: Path) -> None:
    bundle = export_student(
        student,
        tmp_path / "b",
        precision="fp8-qdq",
        batch_sizes=(1, 2),
        prompts=["a red circle", "a blue star"],
        say=lambda line: None,
    )
    assert bundle.manifest.certificate.failures() == []
    assert bundle.manifest.provenance["calibration_prompts"] == "2"
    kinds = Counter(t.data_type for t in onnx.load(bundle.path / "denoiser.onnx").graph.initializer)
    assert kinds[TensorProto.FLOAT8E4M3FN]
    for part in ("text_encoder", "decoder"):
        held = {t.data_type for t in onnx.load(bundle.path / f"{part}.onnx").graph.initializer}
        assert TensorProto.FLOAT8E4M3FN not in held
    measured = [one.relative for one in bundle.manifest.certificate.measurements if one.part == "denoiser"]
    assert min(measured) > 1e-4
    assert generate(load_runtime(bundle, threads=1), ["a red circle"], [1], 2).shape == (1, 64, 64, 3)


@pytest.mark.parametrize("precision", ["int8-qdq", "fp8-qdq"])
def test_fixed_scales_need_prompts(student: Path, tmp_path: Path, precision: str) -> None:
    with pytest.raises(EngineError, match=f"precision {precision}: needs prompts to calibrate on"):
        export_student(student, tmp_path / "b", precision=precision, say=lambda line: None)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def stand_ins(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Precision -> CPU seconds; `make_bundle` and the clock are stood in for."""
    seconds = {"fp32": 1.0, "fp16": 0.98, "int8": 0.5}

    def make(student: Student, folder: Path, wish: Wish, precision, say) -> None:
        if precision.name == "int8":
            raise EngineError("student: the pictures differ")
        for file in ("bundle.json", *bundle.manifest.files):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes((bundle.path / file).read_bytes())
        (folder / "which").write_text(precision.name)

    monkeypatch.setattr(choice, "make_bundle", make)
    monkeypatch.setattr(choice, "medians", lambda calls: {name: seconds[name] for name in calls})
    return seconds


@pytest.mark.parametrize(("half", "taken"), [(0.98, "fp32"), (0.5, "fp16"), (2.0, "fp32")])
def test_the_fastest_that_holds_is_taken_and_a_tie_goes_to_the_more_exact(
    loaded: Student, tmp_path: Path, stand_ins: dict[str, float], half: float, taken: str
) -> None:
    stand_ins["fp16"] = half
    said: list[str] = []
    choose(loaded, tmp_path, Wish((1, 16), (SIZE,)), list(PRECISIONS.values()), said.append)
    assert (tmp_path / "which").read_text() == taken
    assert not list(tmp_path.glob(".*"))
    shown = "\n".join(said)
    assert f"{taken} is the fastest that holds" in shown
    assert "int8      rejected: the pictures differ" in shown
    assert "int8-qdq  rejected: no prompts to calibrate on" in shown
    assert "fp8-qdq   rejected: no prompts to calibrate on" in shown
    assert "bf16      rejected: ONNX Runtime does not run it on a CPU, so it cannot be timed here" in shown


def test_if_nothing_holds_every_reason_is_given(
    loaded: Student, tmp_path: Path, stand_ins: dict[str, float]
) -> None:
    wanted = [PRECISIONS["int8"], PRECISIONS["int8-qdq"]]
    with pytest.raises(EngineError, match="no precision holds: the pictures differ; no prompts to calibrate"):
        choose(loaded, tmp_path, Wish((1,), (SIZE,)), wanted, lambda line: None)


def test_a_line_of_the_table_tells_size_time_and_fidelity(bundle: Bundle) -> None:
    (line, *_) = choice.table([Candidate("fp32", bundle, seconds=(0.02, 0.01))])
    assert line.startswith("fp32 ")
    assert "20.0 / 10.0 ms of CPU a picture in batches of 1 / 16" in line


def test_the_wished_psnr_takes_the_place_of_the_precisions() -> None:
    from engines.export import _precisions

    assert _precisions("int8", None) == [PRECISIONS["int8"]]
    (one,) = _precisions("int8", 12.0)
    assert one == replace(PRECISIONS["int8"], tolerance={**PRECISIONS["int8"].tolerance, "picture": 12.0})
    assert {p.tolerance["picture"] for p in _precisions("auto", None)} == {40.0}
    assert [p.name for p in _precisions("auto", 9.0)] == list(PRECISIONS)
