"""Prompt sets: what a distillation and an evaluation draw their texts from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from .errors import DistillError
from .shapes.scenes import SceneSet, captions

MAX_CHARACTERS = 4000


def load_prompts(source: str) -> list[str]:
    """Prompts of `source`: `shapes:train`, `shapes:held-out`, or a file.

    A `.jsonl` file holds `{"prompt": ...}` objects, a `.json` file captions as those of COCO
    (`{"annotations": [{"image_id": ..., "caption": ...}, ...]}`), any other one prompt a line; empty
    lines are skipped.

    Raises:
        DistillError: no such set or file, not text, a bad line or caption (with its number), or no
            prompt at all.
    """
    return [prompt for choices in _choices(source) for prompt in choices]


def sample_prompts(source: str, count: int | None = None, seed: int = 0) -> list[str]:
    """`count` prompts of `source` (default: all) in its order, of COCO captions one for each picture.

    The same seed chooses the same, and a smaller `count` a part of what a larger one chooses.

    Raises:
        DistillError: as `load_prompts`, or `source` has fewer than `count`.
    """
    choices, rng = _choices(source), np.random.default_rng((seed, 0xC0C0))
    if count is not None and count > len(choices):
        raise DistillError(f"{source} has prompts for {len(choices)} pictures; {count} are wanted")
    prompts = [captions[rng.integers(len(captions))] for captions in choices]
    return [prompts[number] for number in sorted(rng.permutation(len(prompts))[:count])]


def _choices(source: str) -> list[list[str]]:
    """For each picture of `source` the prompts that it goes by: one, but several in COCO."""
    if source.startswith("shapes:"):
        return [[prompt] for prompt in _shapes(source)]
    path = Path(source)
    if not path.is_file():
        raise DistillError(
            f"no prompts {source!r}: give a .txt, .jsonl or .json file, shapes:train or shapes:held-out"
        )
    found = _captions(path) if path.suffix == ".json" else [[prompt] for prompt in _parse(path)]
    if not found:
        raise DistillError(f"prompt file {source} holds no prompt")
    return found


def _shapes(source: str) -> list[str]:
    try:
        scenes = SceneSet(source.removeprefix("shapes:"))
    except ValueError as error:
        raise DistillError(f"no prompts {source!r}: there are shapes:train and shapes:held-out") from error
    # Single shapes are repeated until they have the share that the teacher saw.
    share = len(scenes.pairs) // (3 * len(scenes.singles))
    return captions(scenes.singles * share + scenes.pairs)


def _parse(path: Path) -> Iterator[str]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            prompt = _from_json(path, number, line) if path.suffix == ".jsonl" else line.strip()
            yield check_prompt(prompt, f"{path}:{number}")


class _Caption(BaseModel):
    image_id: int | str
    caption: str


class _Captions(BaseModel):
    annotations: list[_Caption]


def _captions(path: Path) -> list[list[str]]:
    """Captions of a COCO file, those of one picture together."""
    try:
        found = _Captions.model_validate(json.loads(_text(path))).annotations
    except json.JSONDecodeError as error:
        raise DistillError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DistillError(
            f"{path}: {where}: {first['msg']}; expected COCO captions, "
            '{"annotations": [{"image_id": ..., "caption": "..."}, ...]}'
        ) from error
    pictures: dict[int | str, list[str]] = {}
    for number, annotation in enumerate(found):
        caption = check_prompt(annotation.caption.strip(), f"{path}: annotations.{number}")
        pictures.setdefault(annotation.image_id, []).append(caption)
    return list(pictures.values())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DistillError(f"prompt file {path} is not UTF-8 text (byte {error.start})") from error


def check_prompt(prompt: str, where: str) -> str:
    """`prompt` itself, if it can be drawn.

    Raises:
        DistillError: it is empty, too long, or not text (bytes that are not UTF-8); says `where`.
    """
    if not prompt.strip():
        raise DistillError(f"{where}: the prompt is empty; give some text")
    if len(prompt) > MAX_CHARACTERS:
        raise DistillError(f"{where}: prompt of {len(prompt)} characters; at most {MAX_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" or character == "\0" for character in prompt):
        raise DistillError(f"{where}: the prompt is not text; expected UTF-8 without NUL")
    return prompt


def _from_json(path: Path, number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise DistillError(f'{path}:{number}: expected {{"prompt": "..."}}') from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise DistillError(f"{path}:{number}: prompt must be a non-empty text")
    return prompt
