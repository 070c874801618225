"""Prompt sets: what a distillation and an evaluation draw their texts from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .errors import DistillError
from .shapes.scenes import SceneSet, captions

MAX_CHARACTERS = 4000


def load_prompts(source: str) -> list[str]:
    """Prompts of `source`: `shapes:train`, `shapes:held-out`, or a file.

    A `.jsonl` file holds `{"prompt": ...}` objects, any other one prompt a line; empty lines are
    skipped.

    Raises:
        DistillError: no such set or file, not text, a bad line (with its number), or no prompt at all.
    """
    if source.startswith("shapes:"):
        return _shapes(source)
    path = Path(source)
    if not path.is_file():
        raise DistillError(
            f"no prompts {source!r}: give a text or .jsonl file, shapes:train or shapes:held-out"
        )
    found = list(_parse(path))
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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DistillError(f"prompt file {path} is not UTF-8 text (byte {error.start})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt = _from_json(path, number, line) if path.suffix == ".jsonl" else line.strip()
            yield check_prompt(prompt, f"{path}:{number}")


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
