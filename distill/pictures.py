"""Pictures for people: tensors to images, grids of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from .files import atomic_file

GAP = 2
Images = npt.NDArray[np.uint8]


def to_images(pictures: Tensor) -> Images:
    """float [N, 3, H, W] in -1 ... 1 -> uint8 [N, H, W, 3]; values outside are clipped, NaN is black."""
    scaled = ((pictures.detach().float().nan_to_num(-1.0).clamp(-1, 1) + 1) * 127.5).round()
    array: Images = scaled.cpu().numpy().astype(np.uint8)
    return array.transpose(0, 2, 3, 1)


def grid(rows: Sequence[Images], zoom: int = 1) -> Image.Image:
    """One picture with a row of images for each of `rows`, uint8 [N, H, W, 3]."""
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP)
            sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: Path) -> None:
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG")


def save_grid(rows: Sequence[Images], path: Path, zoom: int = 1) -> None:
    save_picture(grid(rows, zoom), path)
