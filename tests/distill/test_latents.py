"""The cache of latents of real images, and the encoders that fill it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from distill.data import latents as module
from distill.data import load_latents
from distill.data.latents import Latents
from distill.data.sources import list_pictures
from distill.errors import DistillError
from distill.families import FAMILIES
from distill.pipeline import Pipeline, load_pipeline
from distill.recipe import Data

from .test_sources import folder_of, png, shard_of

Tiny = Callable[[str], Path]


@pytest.fixture
def teacher(tiny_teacher: Path) -> Pipeline:
    return load_pipeline(str(tiny_teacher))


@pytest.fixture
def load(teacher: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Latents]:
    """Loads with pieces of four images, by default eleven renders."""
    monkeypatch.setattr(module, "PIECE", 4)
    monkeypatch.setattr(module, "BATCH", 3)

    def latents(source: Path | str = "shapes", size: Any = None, count: int | None = None) -> Latents:
        count = 11 if source == "shapes" and count is None else count
        data = Data(source=str(source), count=count, cache=tmp_path / "cache")
        return load_latents(data, teacher, size, batch=1)

    return latents


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the encoder gets."""
    encode, sizes = Pipeline.encode, []

    def counting(self: Pipeline, pictures: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pictures))
        return encode(self, pictures)

    monkeypatch.setattr(Pipeline, "encode", counting)
    return sizes


@torch.no_grad()
def test_latents_are_those_of_the_vae(load: Callable[..., Latents], teacher: Pipeline) -> None:
    latents, pictures = load(), list_pictures(Data(source="shapes", count=11))
    assert len(latents) == 11
    assert list(latents.captions) == [p.caption for p in pictures]
    for i in (0, 3, 4, 10):
        pixels = torch.from_numpy(np.array(pictures[i].open())).permute(2, 0, 1)[None] / 127.5 - 1
        expected = teacher.modules.vae.encode(pixels).latent * teacher.modules.vae.config.scaling_factor
        assert_close(latents[[i]], expected, rtol=1e-3, atol=1e-3)
    assert latents[[10, 0, 10]].dtype == torch.float32
    assert torch.equal(latents[[10, 0, 10]][2], latents[[10]][0])


def test_latents_are_encoded_once(
    load: Callable[..., Latents], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = counted(monkeypatch)
    first = load()
    assert sizes == [3, 1, 3, 1, 3], "batches end where pieces do"
    assert files(tmp_path / "cache") == [
        "00000000.safetensors",
        "00000004.safetensors",
        "00000008.safetensors",
    ]
    again = load()
    assert len(sizes) == 5
    assert torch.equal(first[range(11)], again[range(11)])
    assert first.digest == again.digest


def test_a_stopped_encoding_goes_on(
    load: Callable[..., Latents], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Pipeline.encode
    calls: list[int] = []

    def stopping(self: Pipeline, pictures: torch.Tensor) -> torch.Tensor:
        calls.append(len(pictures))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, pictures)

    monkeypatch.setattr(Pipeline, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        load()
    assert files(tmp_path / "cache") == ["00000000.safetensors"], "and no temporary file"
    calls.clear()
    calls.extend([0] * 10)
    load()
    assert calls[10:] == [3, 1, 3], "the other two pieces"


def test_whatever_changes_makes_another_cache(
    load: Callable[..., Latents], teacher: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "p", {"a.png": "x", "b.png": "y"})
    seen = [load(folder).digest]

    def changed(**changes: Any) -> bool:
        seen.append(load(folder, **changes).digest)
        return seen[-1] not in seen[:-1]

    assert changed(size=(96, 64))
    assert changed(count=1)
    (folder / "a.txt").write_text("z")
    assert changed()
    (folder / "a.png").write_bytes(png(99))
    assert changed()
    os.utime(folder / "a.png", ns=(1, 1))
    assert changed()
    (folder / "a.png").rename(folder / "c.png")
    (folder / "a.txt").rename(folder / "c.txt")
    assert changed()
    monkeypatch.setattr(Pipeline, "digest", lambda self, only="*": "another VAE")
    assert changed()


def test_a_new_picture_in_an_old_place_is_encoded(load: Callable[..., Latents], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p", {"a.png": "x"})
    before = load(folder)[[0]]
    (folder / "a.png").write_bytes(png(255))
    assert not torch.equal(load(folder)[[0]], before)


def test_another_transformer_does_not_make_a_cache_stale(tiny: Tiny, tmp_path: Path) -> None:
    teacher = load_pipeline(str(tiny("sana")))
    assert teacher.digest("vae") != teacher.digest("transformer") != teacher.digest()
    assert teacher.digest("vae") == load_pipeline(str(tiny("sana"))).digest("vae")


def test_pictures_are_cropped_around_the_centre(
    load: Callable[..., Latents], teacher: Pipeline, tmp_path: Path
) -> None:
    """A wide picture, whose sides are black, and an upright one that is stored lying down."""
    middle, wide = np.full((100, 100, 3), 200, np.uint8), np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = middle
    for name, pixels in (("a", wide), ("b", middle)):
        (tmp_path / "p").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "p" / f"{name}.png")
        (tmp_path / "p" / f"{name}.txt").write_text(name)
    found = load(tmp_path / "p")[[0, 1]]
    # Resampling sees a little across the edge of the crop; the middle does not.
    assert_close(found[0][:, 2:6, 3:5], found[1][:, 2:6, 3:5], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(load: Callable[..., Latents], tmp_path: Path, mode: str) -> None:
    (tmp_path / "p").mkdir()
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new(mode, (70, 90)).save(tmp_path / "p" / name)
    (tmp_path / "p" / "a.txt").write_text("x")
    assert load(tmp_path / "p")[[0]].shape == (1, 8, 8, 8)


@pytest.mark.parametrize("content", [b"", b"no picture", png()[:60], png()[:-30]])
def test_an_unreadable_picture_is_named(load: Callable[..., Latents], tmp_path: Path, content: bytes) -> None:
    folder = folder_of(tmp_path / "p", {"a.png": "x", "b.png": "y"})
    (folder / "b.png").write_bytes(content)
    with pytest.raises(DistillError, match="p/b.png cannot be read as a picture"):
        load(folder)
    assert files(tmp_path / "cache") == []


def test_an_unreadable_picture_in_a_shard_is_named(load: Callable[..., Latents], tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "s.tar", {"a.txt": b"x", "a.png": b"no picture"})
    with pytest.raises(DistillError, match="s.tar: a.png cannot be read as a picture"):
        load(shard)


def test_a_damaged_piece_is_refused(load: Callable[..., Latents], tmp_path: Path) -> None:
    load()
    (piece,) = (tmp_path / "cache").rglob("00000004.safetensors")
    piece.write_bytes(piece.read_bytes()[:50])
    with pytest.raises(
        DistillError, match=r"00000004.safetensors is damaged .*; delete it to have it encoded again"
    ):
        load()
    piece.unlink()
    assert len(load()) == 11


def test_a_size_that_tokens_do_not_cover_is_refused_first(
    load: Callable[..., Latents], tmp_path: Path
) -> None:
    with pytest.raises(DistillError, match="size 72x64: width and height have to be multiples of 16"):
        load(size=(72, 64))
    assert not (tmp_path / "cache").exists()


def test_pieces_are_mapped_and_not_read(load: Callable[..., Latents], tmp_path: Path) -> None:
    """A change of the file shows in what has been loaded."""
    latents = load(count=4)
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    assert torch.equal(load_file(path)["latents"].float(), latents[range(4)])
    with path.open("r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(np.float16(7.5).tobytes())
    assert latents[[3]].flatten()[-1] == 7.5


def test_the_cache_is_in_the_users_own(
    teacher: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_latents(Data(source="shapes", count=2), teacher, None, 1)
    assert files(tmp_path / "fewstep" / "latents") == ["00000000.safetensors"]


# Encoders.


@torch.no_grad()
@pytest.mark.parametrize("name", ["sana", "sd3", "flux"])
def test_encoding_is_the_inverse_of_decoding(name: str) -> None:
    """With an autoencoder that does nothing, so that scale and shift are all there is."""
    distribution = lambda x: SimpleNamespace(mode=lambda: x)  # noqa: E731
    vae: Any = SimpleNamespace(
        config=SimpleNamespace(scaling_factor=0.41, shift_factor=0.06),
        encode=lambda x, return_dict: (x if name == "sana" else distribution(x),),
        decode=lambda x, return_dict: (x,),
    )
    x = torch.randn(2, 3, 4, 4)
    assert_close(FAMILIES[name].decode(vae, FAMILIES[name].encode(vae, x)), x)
    assert not torch.allclose(FAMILIES[name].encode(vae, x), x)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_kl_encoders_give_their_mean(tiny: Tiny, name: str) -> None:
    pipeline = load_pipeline(str(tiny(name)))
    vae, pictures = pipeline.modules.vae, torch.rand(2, 3, 64, 64) * 2 - 1
    expected = (vae.encode(pictures).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    assert torch.equal(pipeline.encode(pictures), expected)
    assert pipeline.encode(pictures).shape[1:] == pipeline.latent_shape()
