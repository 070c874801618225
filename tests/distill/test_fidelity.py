"""FID and CLIP score over files: zero for the same pictures, references measured once, clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.errors import DistillError
from distill.metrics.clip_score import load_scorer
from distill.metrics.features import FeatureNetwork, load_features
from distill.metrics.fidelity import Yardsticks, fidelity_table, open_reference, summarise
from distill.metrics.frechet import Gaussian, frechet_distance
from distill.pictures import find_pictures, open_picture

from ..tiny_encoders import Colours, Halves, save_encoder, save_script

COUNT = 40  # more than one batch


def photographs(folder: Path, count: int = COUNT, seed: int = 0, darkness: float = 1.0) -> Path:
    """Pictures of many sizes and formats, as real ones are."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(count):
        height, width = rng.integers(20, 60, 2)
        colour = rng.integers(0, 256, 3) * darkness
        pixels = np.clip(colour + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{('png', 'jpg', 'webp')[number % 3]}")
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> FeatureNetwork:
    return load_features(str(save_script(Colours(), tmp_path_factory.mktemp("n") / "colours.pt")), side=16)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("pictures") / "real")


def fid(network: FeatureNetwork, pictures: Path, reference: Path) -> float:
    yardsticks = Yardsticks(open_reference(network, reference, None), None)
    return yardsticks.measure(find_pictures(pictures), [])["fid"]


def test_the_same_pictures_have_no_distance(network: FeatureNetwork, real: Path) -> None:
    assert fid(network, real, real) == pytest.approx(0, abs=1e-9)


def test_it_is_the_distance_of_all_features(network: FeatureNetwork, real: Path, tmp_path: Path) -> None:
    """Batches and files change nothing."""
    dark = photographs(tmp_path / "dark", seed=1, darkness=0.4)
    a, b = (Gaussian.of(network([open_picture(f) for f in find_pictures(x)])) for x in (dark, real))
    assert fid(network, dark, real) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert fid(network, dark, real) > 3 * fid(network, photographs(tmp_path / "like", seed=2), real)


def test_the_reference_is_measured_once(
    network: FeatureNetwork, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "real.safetensors"
    first = open_reference(network, real, kept)
    assert "features of the reference pictures 40/40" in capsys.readouterr().err
    for pictures in (real, None):
        again = open_reference(network, pictures, kept)
        np.testing.assert_array_equal(again.gaussian.covariance, first.gaussian.covariance)
        assert again.gaussian.count == COUNT
    assert not capsys.readouterr().err


def test_statistics_of_another_network_or_size_are_refused(
    network: FeatureNetwork, real: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "real.safetensors"
    open_reference(network, real, kept)
    halves = load_features(str(save_script(Halves(), tmp_path / "halves.pt")), side=16)
    larger = load_features(str(save_script(Colours(), tmp_path / "colours.pt")), side=17)
    for other, named in ((halves, "not with this halves at 16"), (larger, "not with this colours at 17")):
        with pytest.raises(
            DistillError, match=f"was measured with colours at 16 pixels, {named}: their digest"
        ):
            open_reference(other, real, kept)


def test_statistics_of_other_pictures_are_refused(
    network: FeatureNetwork, real: Path, tmp_path: Path
) -> None:
    open_reference(network, real, tmp_path / "s")
    few = photographs(tmp_path / "few", 5)
    with pytest.raises(DistillError, match="was measured from 40 pictures and .*few holds 5"):
        open_reference(network, few, tmp_path / "s")


def test_no_reference_is_refused(network: FeatureNetwork, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="no statistics file"):
        open_reference(network, None, tmp_path / "s")
    with pytest.raises(DistillError, match="needs reference pictures"):
        open_reference(network, None, None)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DistillError, match=r"no pictures in .*; expected a folder of \.png"):
            open_reference(network, folder, None)
    with pytest.raises(DistillError, match="at least 2 pictures in each set, got 1"):
        open_reference(network, photographs(tmp_path / "one", 1), None)


def test_too_few_pictures_are_warned_of(
    network: FeatureNetwork, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Colours have 6 dimensions."""
    few = photographs(tmp_path / "few", 6)
    assert fid(network, few, real) >= 0
    assert "6 pictures for 6 dimensions leave the covariance singular" in capsys.readouterr().err
    open_reference(network, few, tmp_path / "s")
    capsys.readouterr()
    open_reference(network, None, tmp_path / "s")
    assert "warning: " in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_is_named(network: FeatureNetwork, tmp_path: Path) -> None:
    folder = photographs(tmp_path / "p", 3)
    whole = (folder / "000.png").read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2]):
        (folder / "000.png").write_bytes(content)
        with pytest.raises(DistillError, match=r"000\.png is not a picture that can be read"):
            open_reference(network, folder, None)


def test_clip_figures_are_the_mean_over_all_pictures(real: Path, tmp_path: Path) -> None:
    scorer = load_scorer(str(save_encoder("clip", tmp_path / "clip")))
    prompts = [f"picture {number}" for number in range(COUNT)]
    files = find_pictures(real)
    figures = Yardsticks(None, scorer).measure(files, prompts)
    expected = scorer.cosines([open_picture(file) for file in files], prompts).mean()
    assert figures["clip_cosine"] == pytest.approx(expected, abs=1e-6)
    assert figures["clip_score"] == pytest.approx(100 * figures["clip_cosine"], rel=1e-12)
    moved = Yardsticks(None, scorer).measure(files, prompts[1:] + prompts[:1])
    assert moved["clip_cosine"] != figures["clip_cosine"]


def test_what_was_measured_with_is_told(network: FeatureNetwork, real: Path, tmp_path: Path) -> None:
    scorer = load_scorer(str(save_encoder("clip", tmp_path / "clip")))
    told = Yardsticks(open_reference(network, real, None), scorer).describe()
    assert told["fid_network"] == {"name": "colours", "digest": network.digest, "size": 16}
    assert told["fid_reference_images"] == COUNT
    assert told["clip"] == {"name": "clip", "digest": scorer.encoder.digest()}
    assert Yardsticks(None, None).describe() == {}


def test_the_table_has_the_columns_that_were_measured() -> None:
    row = summarise(
        [
            {"fid": 21.0, "clip_cosine": 0.31, "clip_score": 31.0},
            {"fid": 22.0, "clip_cosine": 0.32, "clip_score": 32.0},
        ]
    )
    assert row["fid"] == {"mean": 21.5, "spread": 1.0}
    lines = fidelity_table({"student, 4 steps": row}).splitlines()
    assert lines[0] == "| model | FID | CLIP score | CLIP cosine |"
    assert lines[2] == "| student, 4 steps | 21.50 ± 0.50 | 31.50 ± 0.50 | 0.3150 ± 0.0050 |"
    assert fidelity_table({"a": summarise([{"fid": 3.0}])}).splitlines()[0] == "| model | FID |"
