"""Captioned pictures: a folder, WebDataset shards, or fresh renders of the shapes world.

A source is listed first and read later, so that a cache of latents can tell whether it is up to date
without a single picture being decoded.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DistillError
from ..pictures import FORMATS
from ..prompts import check_prompt
from ..recipe import Data
from ..shapes import render, scenes
from .shards import read_shard

METADATA = "metadata.jsonl"
RENDERS = 8192


@dataclass(frozen=True)
class Picture:
    """A captioned picture that has not been decoded yet.

    Attributes:
        name: Within its source.
        where: The same for messages: a file, or a shard and a name in it.
        caption: Checked to be one that can be drawn.
        version: Differs whenever the picture does: size and time of change of its file.
        open: Decodes it; raises OSError and the like.
    """

    name: str
    where: str
    caption: str
    version: str
    open: Callable[[], Image.Image]


def list_pictures(data: Data) -> list[Picture]:
    """All pictures of a source, in an order that depends on their names only.

    Raises:
        DistillError: there is no such source, it is empty, a picture has no caption (which is named), or
            a shard is damaged.
    """
    if data.source == "shapes":
        return _renders(data.count or RENDERS)
    source = Path(data.source)
    shards = _shards(source)
    if not shards and not source.is_dir():
        raise DistillError(f"no data {data.source!r}: give a folder of pictures, .tar shards or shapes")
    return list(islice(_in_shards(shards) if shards else _in_folder(source), data.count))


def _renders(count: int) -> list[Picture]:
    """Scenes of the training split; the code that draws them is their version."""
    code = b"".join(Path(module.__file__ or "").read_bytes() for module in (render, scenes))
    version = hashlib.sha256(code).hexdigest()
    drawn = scenes.SceneSet("train").draw(np.random.default_rng(0xDA7A), count)
    return [
        Picture(str(i), f"shapes:{i}", scene.caption, version, partial(_render, scene, i))
        for i, scene in enumerate(drawn)
    ]


def _render(scene: scenes.Scene, number: int) -> Image.Image:
    return Image.fromarray(render.render(scene, np.random.default_rng((0xDA7A, number))))


def _in_folder(folder: Path) -> Iterator[Picture]:
    paths = sorted(path for path in folder.rglob("*") if _is_picture(path))
    if not paths:
        raise DistillError(f"data {folder} holds no picture; expected {', '.join(FORMATS)} or .tar shards")
    captions = _metadata(folder) if (folder / METADATA).is_file() else None
    for path in paths:
        name = path.relative_to(folder).as_posix()
        text = _beside(path) if captions is None else captions.get(name)
        if text is None:
            there = f"a line in {METADATA}" if captions is not None else f"{path.stem}.txt beside it"
            raise DistillError(f"{path}: a picture without caption; expected {there}")
        yield Picture(
            name, str(path), check_prompt(text, str(path)), _version(path), partial(Image.open, path)
        )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in FORMATS and not path.name.startswith(".") and path.is_file()


def _beside(path: Path) -> str | None:
    caption = path.with_suffix(".txt")
    return _text(caption.read_bytes(), str(caption)) if caption.is_file() else None


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode().strip()
    except UnicodeDecodeError as error:
        raise DistillError(f"{where} is not UTF-8 text (byte {error.start})") from error


def _metadata(folder: Path) -> dict[str, str]:
    """Captions by file name, as in Hugging Face's `imagefolder`."""
    path, captions = folder / METADATA, {}
    for number, line in enumerate(_text(path.read_bytes(), str(path)).split("\n"), start=1):
        if line.strip():
            name, text = _metadata_line(line, f"{path}:{number}")
            captions[Path(name).as_posix()] = text
            if not (folder / name).is_file():
                raise DistillError(f"{path}:{number}: there is no file {name} in {folder}")
    return captions


def _metadata_line(line: str, where: str) -> tuple[str, str]:
    try:
        content = json.loads(line)
        name, text = content["file_name"], content["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise DistillError(f'{where}: expected {{"file_name": "...", "text": "..."}}') from error
    if not isinstance(name, str) or not isinstance(text, str):
        raise DistillError(f"{where}: file_name and text must be texts")
    return name, text


def _in_shards(paths: Sequence[Path]) -> Iterator[Picture]:
    for path in paths:
        version = _version(path)
        for sample in read_shard(path, FORMATS):
            caption = check_prompt(_text(sample.caption, sample.where), sample.where)
            yield Picture(f"{path.name}/{sample.name}", sample.where, caption, version, sample.open)


def _shards(source: Path) -> list[Path]:
    """The .tar files of a folder or a pattern, sorted; `{000..123}` counts, as in WebDataset's own."""
    if source.is_dir():
        return sorted(source.glob("*.tar"))
    if source.is_file():
        return [source]
    return sorted(Path(name) for one in _counted(str(source)) for name in glob.glob(one))


def _counted(pattern: str) -> Iterable[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return (one for number in numbers for one in _counted(pattern.replace(match[0], number, 1)))


def _version(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
