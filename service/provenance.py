"""What a picture was made from, inside its own file: JSON in a PNG text or in EXIF."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import ExifTags, PngImagePlugin
from PIL import Image as PillowImage
from pydantic import BaseModel, ConfigDict, ValidationError

from engines.bundle import Size

from .errors import ServiceError

KEYWORD = "fewstep"


class Provenance(BaseModel):
    """All that a picture is a function of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    seed: int
    steps: int
    size: Size
    model: str
    bundle: str
    """Digest of the bundle."""
    compression: int = 100
    """Quality of a lossy file."""

    def png(self) -> PngImagePlugin.PngInfo:
        info = PngImagePlugin.PngInfo()
        info.add_text(KEYWORD, self._json())
        return info

    def exif(self) -> PillowImage.Exif:
        exif = PillowImage.Exif()
        exif[ExifTags.Base.Software] = KEYWORD
        exif[ExifTags.Base.ImageDescription] = self._json()
        return exif

    def _json(self) -> str:
        # Both places hold ASCII and Latin letters only.
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True))


def read_provenance(file: Path | io.BytesIO) -> Provenance:
    """
    Raises:
        ServiceError: it is no picture, or not one that was made here.
    """
    try:
        with PillowImage.open(file) as picture:
            exif = picture.getexif()
            text = picture.info.get(KEYWORD) or exif.get(ExifTags.Base.ImageDescription)
        return Provenance.model_validate_json(text or "")
    except ValidationError as error:
        message = f"{file} does not say how it was made; expected a picture that `fewstep serve` drew"
        raise ServiceError(message) from error
    except (OSError, SyntaxError, PillowImage.DecompressionBombError) as error:
        raise ServiceError(f"{file} is not a picture that can be read ({error})") from error
