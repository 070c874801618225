from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import engines.export as export
from engines.bundle import MANIFEST, PARTS, Bundle
from engines.errors import EngineError
from engines.export import BATCH_SIZES, export_student, make
from engines.export.student import load_student
from engines.folder import whole_folder


def refusal(student: Path, out: Path, **options) -> str:
    with pytest.raises(EngineError) as caught:
        export_student(student, out, say=lambda line: None, **options)
    return str(caught.value)


def test_every_part_is_certified_at_every_batch_size(bundle: Bundle):
    certificate = bundle.manifest.certificate
    measured = {(one.part, one.batch_size) for one in certificate.measurements}
    assert measured == {(part, size) for part in (*PARTS, "picture", "batch") for size in BATCH_SIZES}
    assert certificate.failures() == []
    assert certificate.reference.startswith("torch ")
    assert certificate.runtime.startswith("onnxruntime ")


def test_batches_change_nothing(bundle: Bundle):
    differences = [one.max_abs for one in bundle.manifest.certificate.measurements if one.part == "batch"]
    assert differences == [0.0] * len(BATCH_SIZES)


def test_axes_have_names(bundle: Bundle):
    shapes = {
        (part, tensor.name): tensor.shape
        for part, graph in bundle.manifest.graphs.items()
        for tensor in (*graph.inputs, *graph.outputs)
    }
    text, latents = ("batch", "text_length"), ("batch", 8, "latent_height", "latent_width")
    assert shapes["text_encoder", "input_ids"] == text
    assert shapes["text_encoder", "prompt_embeds"] == (*text, 128)
    assert shapes["denoiser", "latents"] == shapes["decoder", "latents"] == latents
    assert shapes["denoiser", "timestep"] == ("batch",)
    assert shapes["denoiser", "prompt_embeds"] == (*text, 128)
    assert shapes["denoiser", "prompt_attention_mask"] == text
    assert shapes["decoder", "pictures"] == ("batch", 3, "8*latent_height", "8*latent_width")


def test_the_manifest_tells_where_the_bundle_comes_from(bundle: Bundle, student: Path):
    manifest = bundle.manifest
    assert manifest.name == student.name
    assert manifest.quality == {"prompt_accuracy": 0.5}
    assert manifest.sizes == ((64, 64), (96, 64))
    assert manifest.provenance["teacher"] == "tiny-sana"
    assert manifest.provenance["student_digest"] == load_student(student).digest
    assert manifest.provenance["torch"] == version("torch")
    assert str(student.parent) not in (bundle.path / MANIFEST).read_text()


@pytest.mark.slow
def test_the_same_student_gives_the_same_bundle(bundle: Bundle, student: Path, tmp_path: Path):
    """In another process with another hash seed, from another folder."""
    moved = shutil.copytree(student, tmp_path / student.name)
    script = (
        "import sys; from pathlib import Path; from engines.export import export_student;"
        "export_student(Path(sys.argv[1]), Path(sys.argv[2]), sizes=[(64, 64), (96, 64)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4321"}
    out = tmp_path / "again"
    subprocess.run([sys.executable, "-c", script, moved, out], check=True, timeout=500, env=environment)
    again = Bundle.load(out)
    assert again.manifest.files == bundle.manifest.files
    assert again.digest == bundle.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "fp7"},
            "precision 'fp7': expected one of fp32, fp16, bf16, int8, int8-qdq, fp8-qdq, auto",
        ),
        ({"precision": "int8-qdq"}, "precision int8-qdq: needs prompts to calibrate on (--prompts FILE)"),
        ({"precision": "fp8-qdq"}, "precision fp8-qdq: needs prompts to calibrate on (--prompts FILE)"),
        ({"batch_sizes": ()}, r"batch sizes []: expected at least one"),
        ({"batch_sizes": (0, 2)}, "batch sizes [0, 2]: expected at least one, all positive"),
        ({"sizes": [(72, 64)]}, "size 72x64: width and height have to be multiples of 16"),
    ],
)
def test_impossible_wishes_say_what_is_possible(student: Path, tmp_path: Path, options, message: str):
    assert message in refusal(student, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_folders_that_are_no_students_are_refused(student: Path, tmp_path: Path):
    assert "is not a student folder: it has no generator.json" in refusal(tmp_path, tmp_path / "out")
    shutil.copy(student / "generator.json", tmp_path)
    assert "is not a student folder: it has no model_index.json" in refusal(tmp_path, tmp_path / "out")
    shutil.copy(student / "model_index.json", tmp_path)
    assert f"diffusers cannot load {tmp_path}" in refusal(tmp_path, tmp_path / "out")


def test_nothing_but_a_bundle_is_written_over(student: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert f"{tmp_path} exists and is not a bundle" in refusal(student, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.fixture
def graphs_at_hand(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the tracing: the graphs are those of `bundle`."""

    def copy(student, folder: Path, wish, precision, say):
        for name in bundle.manifest.files:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(bundle.path / name, folder / name)
        return bundle.manifest.graphs, {}, {}

    monkeypatch.setattr(make, "write_graphs", copy)


@pytest.mark.usefixtures("graphs_at_hand")
def test_graphs_of_another_student_get_no_certificate(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded = load_student(student)
    with torch.no_grad():
        loaded.pipeline.transformer.proj_out.weight.mul_(1.01)
    monkeypatch.setattr(export, "load_student", lambda folder: dataclasses.replace(loaded))
    message = refusal(student, tmp_path / "out", batch_sizes=(1, 2))
    assert "the graphs do not match PyTorch" in message
    assert "denoiser at batch size 1 is off by" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("graphs_at_hand")
def test_what_a_judge_finds_is_on_the_card_beside_the_students_own(student: Path, tmp_path: Path):
    def judge(draw, step_counts):
        pictures = draw(["a red star"] * 3, range(3), 2)  # more than the largest batch
        return {"shape": list(pictures.shape), "steps": list(step_counts)}

    made = export_student(student, tmp_path / "out", batch_sizes=(1, 2), judge=judge, say=lambda line: None)
    engine = {"shape": [3, 64, 64, 3], "steps": [1, 2, 4]}
    assert made.manifest.quality == {"prompt_accuracy": 0.5, "engine": engine}


@pytest.mark.usefixtures("graphs_at_hand")
def test_a_bundle_replaces_an_older_one(bundle: Bundle, student: Path, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(bundle.path, out)
    (out / "left-over.txt").write_text("old")
    again = export_student(student, out, batch_sizes=(2, 1, 2), say=lambda line: None)
    assert again.manifest.batch_sizes == (1, 2)
    assert not (out / "left-over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("graphs_at_hand")
def test_a_full_disk_leaves_nothing_and_keeps_the_older_bundle(
    bundle: Bundle, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    shutil.copytree(bundle.path, out)

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        message = refusal(student, out, batch_sizes=(1,))
    assert message == f"cannot write {out}: No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Bundle.load(out).digest == bundle.digest


def test_a_disk_without_room_is_noticed_before_anything_is_exported(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    message = refusal(student, tmp_path / "deep" / "out")
    assert "deep/out: not enough disk: the export needs" in message
    assert message.endswith(" MB and 0 MB are free")
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    out = tmp_path / "deep" / "out"

    def fail_halfway() -> None:
        with whole_folder(out) as folder:
            (folder / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert not list(out.parent.iterdir())
    with whole_folder(out) as folder:
        (folder / "whole").write_text("whole")
        assert not out.exists()
    assert (out / "whole").read_text() == "whole"


def test_the_older_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    rename = Path.rename

    def stuck(self: Path, target: Path) -> Path:
        if target == out and not self.name.endswith(".old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stuck)
    with pytest.raises(EngineError, match="cannot write"), whole_folder(out) as folder:
        (folder / "new").write_text("new")
    assert (out / "old").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
