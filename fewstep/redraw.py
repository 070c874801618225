"""`fewstep sample --from`: a picture again, from what its file says."""

from __future__ import annotations

from pathlib import Path


def redraw(picture: Path, name_or_path: str | None, out: Path) -> None:
    """Draws the picture in a file that the server made once more, into a PNG with the same pixels.

    Args:
        name_or_path: The bundle; by default the shipped one that the picture names.

    Raises:
        ServiceError: the file does not say how it was made, or another bundle made it.
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

    made = read_provenance(picture)
    bundle = Bundle.load(find_bundle(name_or_path or made.model))
    if bundle.digest != made.bundle:
        raise ServiceError(
            f"{picture} was drawn by the bundle {made.bundle}, and {bundle.path} is {bundle.digest};"
            " name the bundle's folder: fewstep sample BUNDLE --from PICTURE"
        )
    (pixels,) = generate(load_runtime(bundle), [made.prompt], [made.seed], made.steps, made.size)
    with atomic_file(out) as temporary:
        temporary.write_bytes(to_file(pixels, "png", 100, made))
