"""`fewstep sample --from`: a picture again, from what its file says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.pictures import Format


FORMATS: dict[str, Format] = {".png": "png", ".jpeg": "jpeg", ".jpg": "jpeg", ".webp": "webp"}


def redraw(picture: Path, name_or_path: str | None, out: Path) -> None:
    """Draws the picture in a file that the server made once more: the same file, if `out` is of its format.

    Args:
        name_or_path: The bundle; by default the shipped one that the picture names.
        out: Its ending says in which format.

    Raises:
        ServiceError: the file does not say how it was made, another bundle made it, or `out` has another ending.
        EngineError: there is no such bundle.
    """
    from distill.files import atomic_file
    from engines.bundle import Bundle
    from engines.runtime import load_runtime
    from engines.runtime.sampler import generate
    from engines.store import find_bundle
    from service.errors import ServiceError
    from service.pictures import to_file
    from service.provenance import read_provenance

    made, format = read_provenance(picture), FORMATS.get(out.suffix.lower())
    if format is None:
        raise ServiceError(f"--out {out}: expected a name that ends in {', '.join(FORMATS)}")
    bundle = Bundle.load(find_bundle(name_or_path or made.model))
    if bundle.digest != made.bundle:
        raise ServiceError(
            f"{picture} was drawn by the bundle {made.bundle}, and {bundle.path} is {bundle.digest};"
            " name the bundle's folder: fewstep sample BUNDLE --from PICTURE"
        )
    (pixels,) = generate(load_runtime(bundle), [made.prompt], [made.seed], made.steps, made.size)
    with atomic_file(out) as temporary:
        temporary.write_bytes(to_file(pixels, format, made.compression, made))
