"""A prompt set is read before a job is made of it, so that what is wrong is said at once and by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..errors import ServiceError, invalid

NAMED_SETS = ("shapes:train", "shapes:held-out")
"""Prompt sets that every distillation knows."""
MAX_CHARACTERS = 4000
LONGEST_LINE = 1 << 20
SHOWN = 80
PARAM = "training_file"


def check_prompts(path: Path, max_bytes: int) -> int:
    """Reads all of a prompt set: `.jsonl` with `{"prompt": ...}` in each line, or `.txt` with one prompt a line.

    Returns:
        How many prompts it holds.

    Raises:
        ServiceError: 400, it is larger than `max_bytes`, not text, has no prompt, or has a bad line.
    """
    size = path.stat().st_size
    if size > max_bytes:
        message = f"The file has {size} bytes; a prompt set has at most {max_bytes} (FEWSTEP_MAX_FILE_BYTES)."
        raise invalid(PARAM, message, "file_too_large")
    count = 0
    for number, line in _lines(path):
        if line.strip():
            _check(_from_json(line, number) if path.suffix == ".jsonl" else line, number)
            count += 1
    if not count:
        raise invalid(PARAM, 'The file holds no prompt; expected lines of {"prompt": "..."}.', "empty_file")
    return count


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if b"\0" in line:
                raise _bad(number, "has a NUL byte; this is no text file")
            if len(line) == LONGEST_LINE:
                raise _bad(number, f"is longer than {LONGEST_LINE} bytes")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                message = f"is not UTF-8 text (byte 0x{line[error.start]:02x} at {error.start})"
                raise _bad(number, message) from error
            if len(text.splitlines()) > 1:
                raise _bad(number, "has a line or page separator within; end lines with a line feed")
            yield number, text


def _from_json(line: str, number: int) -> str:
    wanted = 'expected {"prompt": "..."}'
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad(number, f"is not JSON; {wanted}, got {_shown(line)}") from error
    prompt = content.get("prompt") if isinstance(content, dict) else None
    if not isinstance(prompt, str):
        raise _bad(number, f"has no text under 'prompt'; {wanted}, got {_shown(line)}")
    return prompt


def _check(prompt: str, number: int) -> None:
    if not prompt.strip():
        raise _bad(number, "has an empty prompt")
    if len(prompt) > MAX_CHARACTERS:
        raise _bad(number, f"has a prompt of {len(prompt)} characters; at most {MAX_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" or character == "\0" for character in prompt):
        raise _bad(number, "has a prompt that is no text; expected Unicode without NUL and lone surrogates")


def _bad(number: int, what: str) -> ServiceError:
    return invalid(PARAM, f"Line {number} {what}.", "invalid_training_file")


def _shown(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")
