from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines import store as store_module
from engines.bundle import MANIFEST, Bundle, Certificate, Parity, TextSpec
from engines.errors import EngineError
from engines.store import find_bundle


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    with pytest.raises(EngineError) as caught:
        Bundle.load(folder)
    return str(caught.value)


def test_a_copy_is_the_same_bundle(bundle: Bundle, copy: Path):
    assert Bundle.load(copy).digest == bundle.digest
    assert bundle.digest.startswith("sha256:")


def test_every_file_is_in_the_manifest(bundle: Bundle):
    found = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()}
    assert found == {*bundle.manifest.files, MANIFEST}
    assert found == {
        "text_encoder.onnx",
        "denoiser.onnx",
        "decoder.onnx",
        "tokenizer/tokenizer.json",
        MANIFEST,
    }


def test_one_flipped_bit_in_any_file_is_refused_with_its_name(bundle: Bundle, copy: Path):
    for name in bundle.manifest.files:
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        assert f"{name} does not match its digest" in refusal(copy)
        shutil.copy(bundle.path / name, copy / name)
    Bundle.load(copy)


def test_a_missing_file_is_named(copy: Path):
    (copy / "decoder.onnx").unlink()
    assert "decoder.onnx is missing" in refusal(copy)


def test_a_folder_without_manifest_is_not_a_bundle(tmp_path: Path):
    assert "is not a bundle: it has no bundle.json" in refusal(tmp_path)


def test_invalid_json_is_refused(copy: Path):
    (copy / MANIFEST).write_text('{"name": ')
    assert "bundle.json is not valid JSON" in refusal(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("certificate"), "certificate: Field required"),
        (lambda content: content["certificate"].update(measurements=[]), "certificate.measurements: "),
        (lambda content: content.update(schema_version=2), "schema_version: "),
        (lambda content: content.update(surprise=1), "surprise: Extra inputs"),
        (
            lambda content: content.update(precision="fp4"),
            "precision: Input should be 'fp32', 'fp16', 'bf16', ",
        ),
        (lambda content: content["spec"].pop("levels"), "spec.levels: Field required"),
        (lambda content: content["graphs"].pop("decoder"), "graph decoder is missing"),
        (lambda content: content["files"].pop("denoiser.onnx"), "denoiser.onnx has no digest"),
        (lambda content: content["files"].pop("tokenizer/tokenizer.json"), "tokenizer.json has no digest"),
        (
            lambda content: content["certificate"]["tolerance"].update(decoder=0),
            "certificate: decoder at batch",
        ),
    ],
)
def test_a_manifest_that_proves_too_little_is_refused(copy: Path, change, message: str):
    rewrite(copy, change)
    assert message in refusal(copy)


def certificate(**relative: float) -> Certificate:
    measurements = [
        Parity(part=part, batch_size=2, max_abs=0, relative=value, psnr_db=50 if part == "picture" else None)
        for part, value in relative.items()
    ]
    bounds = {"text_encoder": 1e-4, "denoiser": 1e-4, "decoder": 1e-4, "picture": 40}
    return Certificate(reference="a", runtime="b", tolerance=bounds, measurements=tuple(measurements))


def test_a_certificate_holds_when_every_part_is_measured_and_within_bounds():
    parts = {"text_encoder": 0, "denoiser": 1e-4, "decoder": 0, "picture": 1}
    assert certificate(**parts).failures() == []
    assert certificate(**{**parts, "denoiser": 2e-4}).failures() == [
        "denoiser at batch size 2 is off by 0.0002, at most 0.0001 allowed"
    ]
    assert certificate(**{**parts, "decoder": float("nan")}).failures() == [
        "decoder at batch size 2 is off by nan, at most 0.0001 allowed"
    ]
    assert certificate(**{**parts, "other": 0}).failures() == ["other at batch size 2 has no bound"]
    assert certificate(denoiser=0, decoder=0, picture=0).failures() == ["text_encoder was not measured"]


def test_bundles_go_by_path_and_by_shipped_name(bundle: Bundle, copy: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_bundle(str(bundle.path)) == bundle.path
    monkeypatch.setattr(store_module, "SHIPPED", copy.parent)
    assert find_bundle("copy") == copy
    with pytest.raises(EngineError, match=r"no bundle 'nothing': .* shipped name: copy"):
        find_bundle("nothing")


def test_text_is_fed_as_in_training():
    text = TextSpec(tokenizer="tokenizer", max_length=8, template="draw: {prompt}.", lowercase=True)
    assert text.apply("  A {Cat} ") == "draw: a {cat}."
