"""A bundle that was changed anywhere is never taken for the one that was certified."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines import store as module
from engines.bundle import MANIFEST, PARTS, Bundle, Certificate, Manifest, Parity, sha256
from engines.errors import EngineError
from engines.store import find_bundle

BOUNDS = {"text_encoder": 1e-4, "denoiser": 1e-4, "decoder": 1e-4, "batch": 1e-3, "picture": 40.0}
THOROUGH = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def copy(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to be damaged and mended."""
    return Path(shutil.copytree(bundle.path, tmp_path_factory.mktemp("tampering") / "copy"))


@contextmanager
def damaged(file: Path, content: bytes) -> Iterator[None]:
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def flipped(content: bytes, place: int, bits: int) -> bytes:
    changed = bytearray(content)
    changed[place % len(content)] ^= bits
    return bytes(changed)


@THOROUGH
@given(st.data(), st.integers(0, 2**40), st.integers(1, 255))
def test_any_changed_byte_of_any_file_is_refused_by_name(
    bundle: Bundle, copy: Path, data: st.DataObject, place: int, bits: int
) -> None:
    name = data.draw(st.sampled_from(sorted(bundle.manifest.files)))
    with damaged(copy / name, flipped((copy / name).read_bytes(), place, bits)):
        with pytest.raises(EngineError) as caught:
            Bundle.load(copy)
        assert f"{name} does not match its digest" in str(caught.value)
    assert Bundle.load(copy).digest == bundle.digest


@THOROUGH
@given(st.integers(0, 2**40), st.integers(1, 255))
def test_a_changed_byte_of_the_manifest_is_refused_or_makes_another_bundle(
    bundle: Bundle, copy: Path, place: int, bits: int
) -> None:
    """A letter of a free text may change, but then the bundle no longer has the same name."""
    with damaged(copy / MANIFEST, flipped((copy / MANIFEST).read_bytes(), place, bits)):
        try:
            digest = Bundle.load(copy).digest
        except EngineError as error:
            refusal = str(error)
            assert MANIFEST in refusal or "match its digest" in refusal or "missing" in refusal
            return
        assert digest != bundle.digest


@THOROUGH
@given(st.data(), st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused(bundle: Bundle, copy: Path, data: st.DataObject, share: float) -> None:
    """As after a copy that was broken off."""
    name = data.draw(st.sampled_from([*sorted(bundle.manifest.files), MANIFEST]))
    content = (copy / name).read_bytes()
    # The last byte of the manifest is a newline, which says nothing.
    kept = min(int(share * len(content)), len(content) - 2)
    with damaged(copy / name, content[:kept]), pytest.raises(EngineError, match=name.rpartition("/")[2]):
        Bundle.load(copy)


def test_two_files_exchanged_are_noticed(bundle: Bundle, copy: Path) -> None:
    encoder, decoder = (copy / f"{part}.onnx" for part in ("text_encoder", "decoder"))
    with damaged(encoder, decoder.read_bytes()), pytest.raises(EngineError, match=r"text_encoder\.onnx"):
        Bundle.load(copy)


def test_every_digest_is_that_of_its_file(bundle: Bundle) -> None:
    for name, digest in bundle.manifest.files.items():
        assert sha256(bundle.path / name) == digest
        assert len(digest) == 64


def test_the_digest_of_a_bundle_covers_every_file(bundle: Bundle, tmp_path: Path) -> None:
    """Other weights with a manifest that owns up to them are another bundle."""
    other = Path(shutil.copytree(bundle.path, tmp_path / "other"))
    content = flipped((other / "decoder.onnx").read_bytes(), 1000, 1)
    (other / "decoder.onnx").write_bytes(content)
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["files"]["decoder.onnx"] = sha256(other / "decoder.onnx")
    (other / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    assert Bundle.load(other).digest != bundle.digest


def test_a_folder_in_place_of_a_file_is_missing(bundle: Bundle, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle.path, tmp_path / "other"))
    (other / "decoder.onnx").unlink()
    (other / "decoder.onnx").mkdir()
    with pytest.raises(EngineError, match=r"decoder\.onnx is missing"):
        Bundle.load(other)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"3", b"\xff\xfe", b"{}"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(EngineError, match=MANIFEST):
        Bundle.load(tmp_path)


def test_a_manifest_survives_its_own_writing(bundle: Bundle) -> None:
    again = Manifest.model_validate_json(bundle.manifest.model_dump_json(indent=2))
    assert again == bundle.manifest


def certificate(*measurements: Parity, bounds: dict[str, float] = BOUNDS) -> Certificate:
    return Certificate(reference="a", runtime="b", tolerance=bounds, measurements=measurements)


def good(part: str, batch_size: int = 1) -> Parity:
    psnr = 60.0 if part == "picture" else None
    return Parity(part=part, batch_size=batch_size, max_abs=0, relative=0, psnr_db=psnr)


ALL_GOOD = tuple(good(part) for part in (*PARTS, "picture"))


@given(
    st.sampled_from([*PARTS, "batch"]),
    st.floats(1e-9, 1.0) | st.just(float("inf")),
    st.permutations([good(part, size) for part in (*PARTS, "picture") for size in (1, 2)]),
)
def test_one_bad_measurement_among_good_ones_is_found_wherever_it_stands(
    part: str, relative: float, others: list[Parity]
) -> None:
    bad = Parity(part=part, batch_size=7, max_abs=1, relative=relative)
    found = certificate(*others[:4], bad, *others[4:]).failures()
    if relative > BOUNDS[part]:
        assert len(found) == 1
        assert found[0].startswith(f"{part} at batch size 7 is off by")
    else:
        assert found == []


@pytest.mark.parametrize(
    ("psnr", "fails"), [(None, True), (39.99, True), (40.0, False), (float("nan"), True)]
)
def test_pictures_need_their_decibels(psnr: float | None, fails: bool) -> None:
    picture = Parity(part="picture", batch_size=4, max_abs=3, relative=0.01, psnr_db=psnr)
    found = certificate(*ALL_GOOD[:-1], picture).failures()
    assert bool(found) == fails
    if fails:
        assert "picture at batch size 4" in found[0]
        assert "40.0" in found[0]


@pytest.mark.parametrize("part", [*PARTS, "picture"])
def test_what_was_never_measured_is_a_failure(part: str) -> None:
    rest = [one for one in ALL_GOOD if one.part != part]
    assert certificate(*rest).failures() == [f"{part} was not measured"]


def test_a_bound_that_was_taken_out_is_a_failure() -> None:
    bounds = {name: bound for name, bound in BOUNDS.items() if name != "decoder"}
    assert certificate(*ALL_GOOD, bounds=bounds).failures() == ["decoder at batch size 1 has no bound"]


def test_a_shipped_name_wins_over_a_folder_here(
    bundle: Bundle, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHIPPED", copy.parent)
    shutil.copytree(bundle.path, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert find_bundle("copy") == copy
    assert find_bundle("./copy").resolve() == copy, "a shipped name with a dot before it"
    assert find_bundle(str(tmp_path / "copy")) == tmp_path / "copy"


@pytest.mark.parametrize("name", ["", "nothing", "\0", "..", "a/b", "💥"])
def test_a_name_of_nothing_lists_the_shipped_bundles(name: str) -> None:
    with pytest.raises(EngineError, match="shipped name: .*shapes-sana-sid"):
        find_bundle(name)


def test_a_folder_without_manifest_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_text("")
    with pytest.raises(EngineError, match=f"give a folder with {MANIFEST}"):
        find_bundle(str(tmp_path))


def test_the_shipped_bundle_is_whole() -> None:
    shipped = Bundle.load(find_bundle("shapes-sana-sid"))
    assert sorted(shipped.spec.levels) == [1, 2, 4]
    assert shipped.manifest.certificate.failures() == []
    assert not [p for p in shipped.path.rglob("*") if p.is_file() and p.name != MANIFEST
                and p.relative_to(shipped.path).as_posix() not in shipped.manifest.files]  # fmt: skip


@pytest.mark.parametrize("path", ["../denoiser.onnx", "/denoiser.onnx", "a/../../b", "..\\\\b"])
def test_a_manifest_that_vouches_for_files_elsewhere_is_refused(
    bundle: Bundle, tmp_path: Path, path: str
) -> None:
    """Taken into a store, such a bundle would be written elsewhere, too."""
    copy = Path(shutil.copytree(bundle.path, tmp_path / "a" / "copy"))
    shutil.copy(copy / "denoiser.onnx", tmp_path / "a")
    content = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(content.replace('"denoiser.onnx"', f'"{path}"'))
    with pytest.raises(EngineError, match=r"bundle\.json: '.*' leads out of the bundle"):
        Bundle.load(copy)


def test_a_manifest_of_nested_brackets(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(b"[" * 50_000)
    with pytest.raises(EngineError, match=r"bundle\.json"):
        Bundle.load(tmp_path)
