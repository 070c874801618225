"""Pictures say how they were made, and can be made again from that."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from engines.bundle import Bundle
from engines.runtime import load_runtime
from engines.runtime.sampler import generate
from engines.store import find_bundle
from fewstep.cli import main
from service.errors import ServiceError
from service.pictures import to_file
from service.provenance import Provenance, read_provenance
from service.settings import Settings

from .fake_runtime import FakeRuntime
from .running import Running, run_server
from .test_generations import first_image

FORMATS = st.sampled_from(["png", "jpeg", "webp"])


@given(st.text(min_size=1, max_size=300), st.integers(0, 2**63 - 1), st.sampled_from([1, 2, 4]), FORMATS)
def test_what_is_written_is_read(prompt: str, seed: int, steps: int, format: Any) -> None:
    made = Provenance(
        prompt=prompt, seed=seed, steps=steps, size=(8, 8), model="m", bundle="sha256:0", compression=90
    )
    content = to_file(np.zeros((8, 8, 3), np.uint8), format, 90, made)
    assert read_provenance(io.BytesIO(content)) == made


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_served_pictures_say_how_they_were_made(shared: Running, format: str) -> None:
    prompt = "ein Kreis, 星"
    content = first_image(
        shared.generate(prompt=prompt, seed=9, size="64x32", quality="medium", output_format=format)
    )
    assert read_provenance(io.BytesIO(content)) == Provenance(
        prompt=prompt, seed=9, steps=2, size=(64, 32), model="fake", bundle=FakeRuntime().bundle.digest
    )


def test_it_can_be_left_out(settings: Settings) -> None:
    silent = settings.model_copy(update={"provenance": False})
    with run_server(silent, {"fake": FakeRuntime()}) as running:
        content = first_image(running.generate(prompt="confidential"))
    assert b"confidential" not in content
    with pytest.raises(ServiceError, match="does not say how it was made"):
        read_provenance(io.BytesIO(content))


@pytest.mark.parametrize(("ending", "format"), [("jpeg", "jpeg"), ("jpg", "jpeg"), ("webp", "webp")])
def test_a_lossy_picture_is_drawn_again_to_the_byte(
    tmp_path: Path, settings: Settings, ending: str, format: str
) -> None:
    bundle = Bundle.load(find_bundle("shapes-sana-sid"))
    served, again = tmp_path / "served", tmp_path / f"again.{ending}"
    with run_server(settings, {"shapes-sana-sid": load_runtime(bundle)}) as running:
        answer = running.generate(seed=7, output_format=format, output_compression=40)
    served.write_bytes(first_image(answer))
    assert main(["sample", "--from", str(served), "--out", str(again)]) == 0
    assert again.read_bytes() == served.read_bytes()


def test_a_picture_is_drawn_into_a_known_format_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Provenance(prompt="a", seed=7, steps=2, size=(8, 8), model="m", bundle="sha256:0")
    (tmp_path / "a.png").write_bytes(to_file(np.zeros((8, 8, 3), np.uint8), "png", 100, made))
    assert main(["sample", "--from", str(tmp_path / "a.png"), "--out", str(tmp_path / "b.gif")]) == 2
    assert "expected a name that ends in .png, .jpeg, .jpg, .webp" in capsys.readouterr().err


def test_a_served_picture_is_drawn_again_to_the_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.load(find_bundle("shapes-sana-sid"))
    made = Provenance(
        prompt="a red circle on a white background",
        seed=7,
        steps=2,
        size=bundle.spec.default_size,
        model="shapes-sana-sid",
        bundle=bundle.digest,
    )
    (pixels,) = generate(load_runtime(bundle), [made.prompt], [made.seed], made.steps, made.size)
    (tmp_path / "served.png").write_bytes(to_file(pixels, "png", 100, made))
    again = tmp_path / "again.png"
    assert main(["sample", "--from", str(tmp_path / "served.png"), "--out", str(again)]) == 0
    assert again.read_bytes() == (tmp_path / "served.png").read_bytes()
    assert capsys.readouterr().out.strip() == str(again)
    other = made.model_copy(update={"bundle": "sha256:" + "0" * 64})
    (tmp_path / "other.png").write_bytes(to_file(pixels, "png", 100, other))
    again.unlink()
    assert main(["sample", "--from", str(tmp_path / "other.png"), "--out", str(again)]) == 2
    assert "was drawn by the bundle" in capsys.readouterr().err
    assert not again.exists()


@pytest.mark.parametrize(("content", "says"), [(b"no picture", "not a picture"), (None, "not a picture")])
def test_other_files_are_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, says: str
) -> None:
    file = tmp_path / "x.png"
    if content is not None:
        file.write_bytes(content)
    assert main(["sample", "--from", str(file), "--out", str(tmp_path / "y.png")]) == 2
    assert says in capsys.readouterr().err


def test_a_picture_from_elsewhere_says_nothing(tmp_path: Path) -> None:
    PillowImage.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ServiceError, match="does not say how it was made"):
        read_provenance(tmp_path / "x.png")


def test_sample_needs_a_model_and_a_prompt_or_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "shapes-sana-sid"]) == 2
    assert "expected MODEL and PROMPT, or --from PICTURE" in capsys.readouterr().err
