"""Pixels to files, and the folder from which the files of `response_format: url` are served."""

from __future__ import annotations

import io
import re
import secrets
import time
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from .errors import ServiceError
from .folders import is_older, make_folder
from .provenance import Provenance

Format = Literal["png", "jpeg", "webp"]
Pixels = npt.NDArray[np.uint8]

LIFETIME = 60 * 60.0
"""Seconds for which a URL works, as at OpenAI."""
SWEEP_INTERVAL = 60.0
NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)")
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def to_file(
    pixels_HWC: Pixels, format: Format, compression: int, provenance: Provenance | None = None
) -> bytes:
    """A picture as the bytes of an image file; `compression` is the quality of the lossy formats."""
    buffer = io.BytesIO()
    picture = PillowImage.fromarray(pixels_HWC)
    if format == "png":
        # Run lengths of what PNG's filters leave: less time than level 1 of the default, and fewer bytes.
        picture.save(buffer, "PNG", compress_type=zlib.Z_RLE, pnginfo=provenance and provenance.png())
        return buffer.getvalue()
    exif = provenance.exif() if provenance else PillowImage.Exif()
    if format == "jpeg":
        picture.save(buffer, "JPEG", quality=compression, exif=exif)
    else:
        picture.save(buffer, "WEBP", quality=compression, method=2, exif=exif)
    return buffer.getvalue()


class FileStore:
    """Image files under unguessable names, each for an hour."""

    def __init__(self, folder: Path, lifetime: float = LIFETIME) -> None:
        """
        Raises:
            ServiceError: the folder cannot be made or written to.
        """
        self._folder, self._lifetime = folder, lifetime
        self._next_sweep = 0.0
        make_folder(folder, "pictures")

    def put(self, content: bytes, format: Format) -> str:
        """Keeps a file and returns its name."""
        self._sweep()
        name = f"{secrets.token_urlsafe(24)}.{format}"
        (self._folder / name).write_bytes(content)
        return name

    def find(self, name: str) -> Path:
        """
        Raises:
            ServiceError: 404, there is no such file or its time is over.
        """
        path = self._folder / name
        if NAME.fullmatch(name) and path.is_file() and not is_older(path, self._lifetime):
            return path
        message = "There is no such picture, or its hour is over."
        raise ServiceError(message, status=404, code="file_not_found")

    def _sweep(self) -> None:
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + SWEEP_INTERVAL
        for path in self._folder.iterdir():
            if NAME.fullmatch(path.name) and is_older(path, self._lifetime):
                path.unlink(missing_ok=True)
