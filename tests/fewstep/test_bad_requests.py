"""Wrong requests at the command line: one line, the right exit code, nothing written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from distill.pipeline import find_pipeline
from engines.bundle import MANIFEST
from engines.store import find_bundle
from fewstep.cli import main
from fewstep.models import open_model


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a request that was wrong."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    assert code == 2, said
    (line,) = said.err.strip().splitlines()
    assert line.startswith(f"fewstep {arguments[0]}")
    return line


def unchanged(folder: Path) -> bool:
    return sorted(path.name for path in folder.iterdir()) == ["keep"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which nothing may appear."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "keep").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A copy of the shipped student, to be spoilt."""
    return Path(shutil.copytree(find_pipeline("shapes-sana-sid"), tmp_path / "student"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "nowhere", "--out", "b"), "no model 'nowhere'"),
        (
            ("export", "shapes-sana", "--out", "b"),
            "has no generator.json; make one of it with `fewstep distill`",
        ),
        (("export", "./keep", "--out", "b"), "no model './keep': give a diffusers pipeline folder"),
        (("export", "shapes-sana-sid"), "required: --out"),
        (("build", "nowhere", "--backend", "tensorrt-rtx"), "no bundle 'nowhere'"),
        (("build", "shapes-sana-sid"), "required: --backend"),
        (("build", "shapes-sana-sid", "--backend", "cudnn"), "expected tensorrt or tensorrt-rtx"),
        (("build", "shapes-sana-sid", "--backend", "tensorrt-rtx", "--out", "."), "is not a bundle"),
        (("sample", "shapes-sana-sid", "a", "--backend", "tensorrt"), "backend tensorrt runs bundles"),
        (
            ("export", "shapes-sana-sid", "--out", "b", "--precision", "int3"),
            "precision 'int3': expected one of",
        ),
        (("export", "shapes-sana-sid", "--out", "b", "--size", "64x"), "expected WxH"),
        (("export", "shapes-sana-sid", "--out", "b", "--size", "-64x64"), "size"),
        (("export", "shapes-sana-sid", "--out", "b", "--size", "60x64"), "multiples of 16"),
        (("export", "shapes-sana-sid", "--out", "b", "--size", "0x0"), "multiples of 16"),
        (("export", "shapes-sd3-sid", "--out", "b", "--size", "144x128"), "at most 128 pixels a side"),
        (("export", "shapes-sana-sid", "--out", "b", "--size", "160000x160000"), "GB, and this machine has"),
        (("export", "shapes-sana-sid", "--out", "keep"), "keep exists and is not a bundle"),
        (("export", "shapes-sana-sid", "--out", "."), "exists and is not a bundle"),
        (("export", "shapes-sana-sid", "--out", "keep/b"), "cannot write keep/b"),
    ],
)
def test_bad_exports_leave_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *arguments)
    assert unchanged(here)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("generator.json", "{", "generator.json"),
        ("generator.json", '{"family": "dit"}', "generator.json"),
        ("model_index.json", "{", "model_index.json"),
        ("transformer/config.json", "{", "cannot load"),
        ("transformer/diffusion_pytorch_model.safetensors", "", "cannot read"),
    ],
)
def test_a_damaged_student_is_named_and_not_exported(
    here: Path, student: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, message: str
) -> None:
    (student / file).write_text(content)
    assert message in refused(capsys, "export", student, "--out", here / "b")
    assert unchanged(here)


def test_a_student_of_an_unknown_family_is_refused(
    here: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = json.loads((student / "generator.json").read_text())
    (student / "generator.json").write_text(json.dumps({**spec, "family": "dit"}))
    assert "unknown family 'dit'; known: " in refused(capsys, "export", student, "--out", here / "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "shapes-sana-sid", "x", "--steps", "0"), "expected a positive whole number"),
        (("sample", "shapes-sana-sid", "x", "--steps", "3"), "this student offers [1, 2, 4]"),
        (("sample", "shapes-sana-sid", "x", "--seed", str(2**63)), "2^63-1"),
        (("sample", "shapes-sana-sid", "x", "--seed", "1.5"), "expected a whole number"),
        (("sample", "shapes-sana-sid", "x", "--zoom", "-2"), "expected a positive whole number"),
        (("sample", "shapes-sana-sid", "x" * 4001), "prompt of 4001 characters; at most 4000"),
        (("sample", "shapes-sana-sid", "good", "\t\n"), "prompt 2"),
        (("sample", "shapes-sana-sid", "a\0b"), "not text"),
        (("sample", "shapes-sana-sid", "a\udcff"), "not text"),
        (("sample", "shapes-sana-sid"), "expected MODEL and PROMPT"),
        (("evaluate", "nowhere"), "no model 'nowhere'"),
        (("evaluate", "shapes-sana-sid", "--images", "0"), "expected a positive whole number"),
        (("evaluate", "shapes-sana-sid", "--seeds", "1,,2"), "expected whole numbers with commas"),
        (("evaluate", "shapes-sana-sid", "--guidance", "big"), "expected numbers with commas"),
        (("evaluate", "shapes-sana-sid", "--split", "test"), "invalid choice: 'test'"),
        (("distill", "shapes-sana", "--set", "steps=5"), "steps"),
        (("distill", "shapes-sana", "--set", "colour=red"), "unknown key 'colour'"),
        (("distill", "shapes-sana", "--set", "batch"), "expected key=value"),
        (("distill", "shapes-sana", "--set", "teacher=nowhere"), "no model 'nowhere'"),
        (("distill", "shapes-sana", "--set", "prompts=nowhere.txt"), "no prompts 'nowhere.txt'"),
        (("distill", "shapes-sana", "--out", "s", "--resume"), "nothing to resume"),
        (("shapes", "render", "--count", "0", "--out", "r"), "expected a positive whole number"),
        (("shapes", "train-teacher", "--autoencoder", "nowhere", "--out", "t"), "no autoencoder in nowhere"),
    ],
)
def test_bad_wishes_leave_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *arguments)
    assert unchanged(here)


def test_a_damaged_bundle_is_refused_by_every_command_that_reads_one(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(find_bundle("shapes-sana-sid"), tmp_path / "bundle"))
    content = bytearray((bundle / "decoder.onnx").read_bytes())
    content[7] ^= 64
    (bundle / "decoder.onnx").write_bytes(content)
    for arguments in (
        ("sample", bundle, "a red circle"),
        ("evaluate", bundle, "--images", "2"),
        ("serve", "--model", f"m={bundle}", "--port", "0"),
    ):
        assert "decoder.onnx does not match its digest" in refused(capsys, *arguments)
    assert unchanged(here)


def test_a_bundle_is_told_from_a_student_by_what_it_holds(student: Path) -> None:
    assert open_model(str(student)).kind == "student"
    assert open_model("shapes-sana").kind == "teacher"
    bundle = open_model(str(find_bundle("shapes-sana-sid")))
    assert bundle.kind == "bundle"
    assert (bundle.folder / MANIFEST).is_file()
    assert (bundle.step_counts, bundle.default_steps) == ((1, 2, 4), 4)


def test_student_and_bundle_draw_the_same_picture() -> None:
    import numpy as np

    student, bundle = open_model("shapes-sana-sid"), open_model(str(find_bundle("shapes-sana-sid")))
    pictures = [
        model.draw(["a red circle on a white background"], [5], 4, 1.0) for model in (student, bundle)
    ]
    assert np.abs(pictures[0].astype(int) - pictures[1].astype(int)).max() <= 2


def test_a_missing_tensorrt_is_named_with_its_extra(
    capsys: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    line = refused(capsys, "build", "shapes-sana-sid", "--backend", "tensorrt", "--out", "bundle")
    assert "pip install 'fewstep[tensorrt]'" in line
    assert unchanged(here)


def test_a_bundle_is_sampled_on_the_backend_that_was_asked_for(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    bundle = find_bundle("shapes-sana-sid")
    line = refused(capsys, "sample", bundle, "a red star", "--backend", "onnxruntime-cuda")
    assert "pip install onnxruntime-gpu" in line
    assert "expected auto or one of" in refused(capsys, "sample", bundle, "a", "--backend", "magic")
    assert unchanged(here)
