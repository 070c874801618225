"""WebDataset shards: tar files in which names that agree up to the first dot make one sample.

Tar files are read in place, by the offsets of their members; nothing is unpacked.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from ..errors import DistillError

CAPTION_KEYS = ("text", "caption", "prompt")


@dataclass(frozen=True)
class Sample:
    """A picture and its caption as they lie in a shard."""

    name: str
    where: str
    caption: bytes
    open: Callable[[], Image.Image]


def read_shard(path: Path, suffixes: Sequence[str]) -> list[Sample]:
    """The samples of one shard, in its order.

    Raises:
        DistillError: not a whole, uncompressed tar file; a sample without picture or caption.
    """
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    key, suffix = _split(member.name)
                    members.setdefault(key, {})[suffix] = member
    except (tarfile.TarError, EOFError) as error:
        raise DistillError(f"shard {path} is not a whole, uncompressed tar file: {error}") from error
    if not members:
        raise DistillError(f"shard {path} is empty")
    return [_sample(path, key, parts, suffixes) for key, parts in members.items()]


def _split(name: str) -> tuple[str, str]:
    """`folder/000.seg.png` -> (`folder/000`, `.seg.png`)."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _sample(path: Path, key: str, parts: Mapping[str, tarfile.TarInfo], suffixes: Sequence[str]) -> Sample:
    picture = next((suffix for suffix in suffixes if suffix in parts), None)
    if picture is None:
        raise DistillError(f"shard {path}: sample {key} has no picture; expected {', '.join(suffixes)}")
    member = parts[picture]
    where = f"{path}: {member.name}"
    return Sample(member.name, where, _caption(path, parts, where), partial(_open, path, member))


def _caption(path: Path, parts: Mapping[str, tarfile.TarInfo], where: str) -> bytes:
    if ".txt" in parts:
        return _read(path, parts[".txt"])
    if ".json" not in parts:
        raise DistillError(f"{where}: a picture without caption; expected .txt or .json of the same name")
    try:
        content = json.loads(_read(path, parts[".json"]))
        return str(next(content[key] for key in CAPTION_KEYS if key in content)).encode()
    except (ValueError, TypeError, StopIteration) as error:
        keys = " or ".join(CAPTION_KEYS)
        raise DistillError(f"{where}: its .json is no object with a {keys}") from error


def _read(path: Path, member: tarfile.TarInfo) -> bytes:
    with path.open("rb") as stream:
        stream.seek(member.offset_data)
        return stream.read(member.size)


def _open(path: Path, member: tarfile.TarInfo) -> Image.Image:
    return Image.open(io.BytesIO(_read(path, member)))
