"""Tensors to pixels, rows to grids, grids to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distill.pictures import GAP, grid, save_grid, save_picture, to_images
from engines.runtime.graphs import to_images as to_images_of_the_runtime

WHITE = 255


def plain(count: int, height: int, width: int, value: int) -> np.ndarray:
    return np.full((count, height, width, 3), value, np.uint8)


def test_ends_and_middle_of_the_range() -> None:
    pictures = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert to_images(pictures)[0, 0, :, 0].tolist() == [0, 128, 255]


def test_values_outside_are_clipped_and_not_wrapped() -> None:
    pictures = torch.tensor([-50.0, 50.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert to_images(pictures)[0, 0, :, 0].tolist() == [0, 255]


def test_channels_go_last() -> None:
    pictures = torch.full((2, 3, 4, 5), -1.0)
    pictures[1, 2, 3, 4] = 1.0
    images = to_images(pictures)
    assert (images.shape, images.dtype) == ((2, 4, 5, 3), np.uint8)
    assert images[1, 3, 4].tolist() == [0, 0, 255]
    assert images.sum() == 255


@given(st.integers(0, 255))
def test_every_pixel_value_comes_back(value: int) -> None:
    pictures = torch.full((1, 3, 1, 1), value / 127.5 - 1)
    assert to_images(pictures)[0, 0, 0, 0] == value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_and_gradients_are_no_obstacle(dtype: torch.dtype) -> None:
    pictures = torch.ones(1, 3, 2, 2, dtype=dtype, requires_grad=True)
    assert (to_images(pictures) == 255).all()


def test_the_runtimes_round_in_the_same_way() -> None:
    pictures = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(to_images(pictures), to_images_of_the_runtime(pictures.numpy()))


def test_a_grid_has_a_gap_around_every_picture() -> None:
    sheet = np.asarray(grid([plain(3, 4, 6, 10), plain(3, 4, 6, 20)]))
    assert sheet.shape == (2 * (4 + GAP) + GAP, 3 * (6 + GAP) + GAP, 3)
    assert (sheet[:GAP] == WHITE).all()
    assert (sheet[:, -GAP:] == WHITE).all()
    assert (sheet[GAP : GAP + 4, GAP : GAP + 6] == 10).all()
    assert (sheet[GAP : GAP + 4, GAP + 6 : 2 * GAP + 6] == WHITE).all()
    assert (sheet[2 * GAP + 4 : 2 * GAP + 8, GAP : GAP + 6] == 20).all()


def test_short_rows_leave_their_places_white() -> None:
    sheet = np.asarray(grid([plain(1, 4, 4, 0), plain(3, 4, 4, 0)]))
    assert (sheet[GAP : GAP + 4, 2 * GAP + 4 :] == WHITE).all()


def test_zoom_repeats_pixels_and_invents_no_colours() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
    small, large = grid([pixels]), grid([pixels], zoom=3)
    assert large.size == (3 * small.width, 3 * small.height)
    assert np.array_equal(np.asarray(large)[1::3, 1::3], np.asarray(small))
    assert len(np.unique(np.asarray(large).reshape(-1, 3), axis=0)) <= 17


def test_a_file_is_a_png_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.data"
    save_grid([plain(2, 4, 4, 7)], path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), np.asarray(grid([plain(2, 4, 4, 7)])))


def test_a_picture_that_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    save_grid([plain(1, 4, 4, 7)], path)
    before = path.read_bytes()

    def fail_halfway(self: Image.Image, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail_halfway)
    with pytest.raises(OSError, match="No space left"):
        save_picture(Image.new("RGB", (4, 4)), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
