"""Pictures for people: tensors to images, grids of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torch import Tensor

from .errors import DistillError
from .files import atomic_file

GAP = 2
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
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


def find_pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, in the order of their names.

    Raises:
        DistillError: there are none.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in FORMATS)
    if not found:
        raise DistillError(f"no pictures in {folder}; expected a folder of {', '.join(FORMATS)} files")
    return found


def open_picture(path: Path) -> Image.Image:
    """The RGB picture in a file.

    Raises:
        DistillError: it cannot be read; says which.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DistillError(f"{path} is not a picture that can be read ({error})") from error


def square(picture: Image.Image, side: int) -> Image.Image:
    """The largest square in the middle of a picture, resized (antialiased) to `side` x `side` pixels."""
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
