"""A batch's input file: checked as a whole before there is a batch, then read line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ..errors import ServiceError, from_validation, invalid
from ..schemas import unique
from .schemas import LineRequest

PARAM = "input_file_id"
LISTED = 3
"""Bad lines of which a message tells; it counts all."""
SHOWN = 60


@dataclass(frozen=True)
class Limits:
    """Of an input file.

    Attributes:
        lines: Requests in it.
        line_bytes: Of one line, as of a request's body.
    """

    lines: int
    line_bytes: int


def check_lines(path: Path, limits: Limits) -> int:
    """Reads all of an input file.

    Returns:
        How many requests it has.

    Raises:
        ServiceError: 400, it has none or too many, or some line is none; says which lines and why.
    """
    seen: dict[str, int] = {}
    count, bad, told = 0, 0, list[str]()
    for number, text in _lines(path, limits.line_bytes):
        count += 1
        if count > limits.lines:
            message = f"The file has more than {limits.lines} requests (FEWSTEP_BATCH_MAX_LINES)."
            raise invalid(PARAM, message, "too_many_requests")
        try:
            _check_new(_parse(text, limits.line_bytes).custom_id, number, seen)
        except ServiceError as error:
            bad += 1
            told += [f"line {number}: {error.message}"] if bad <= LISTED else []
    if bad:
        more = f" And {bad - LISTED} more." if bad > LISTED else ""
        message = f"{bad} of {count} lines cannot be accepted. {_sentence(' '.join(told))}{more}"
        raise invalid(PARAM, message, "invalid_batch_file")
    if not count:
        message = 'The file has no request; a line is {"custom_id", "method", "url", "body"}.'
        raise invalid(PARAM, message, "empty_file")
    return count


def read_lines(path: Path, limits: Limits) -> Iterator[tuple[int, LineRequest]]:
    """The requests of a file that has been checked, with the numbers of their lines, from 1.

    Raises:
        ServiceError: 400, the file has changed.
    """
    for number, text in _lines(path, limits.line_bytes):
        yield number, _parse(text, limits.line_bytes)


def _lines(path: Path, line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Those that are not blank; of one that is too long, enough to see that."""
    with path.open("rb") as file:
        number, beginning = 1, True
        while text := file.readline(line_bytes + 2):
            if beginning and text.strip():
                yield number, text
            beginning = text.endswith(b"\n")
            number += beginning


def _parse(text: bytes, line_bytes: int) -> LineRequest:
    if len(text.rstrip(b"\r\n")) > line_bytes:
        raise invalid("line", f"It is longer than {line_bytes} bytes.")
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise invalid("line", f"It is not UTF-8 text (byte 0x{text[error.start]:02x}).") from error
    except (ValueError, RecursionError) as error:
        raise invalid("line", f"It is not JSON, but {_shown(text)}.") from error
    if not isinstance(content, dict):
        raise invalid("line", f"It is no JSON object, but {_shown(text)}.")
    try:
        line = LineRequest.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        raise from_validation({**problem, "loc": ("line", *problem["loc"])}) from error
    _check_body(line)
    return line


def _check_body(line: LineRequest) -> None:
    """What only makes sense when somebody waits."""
    if line.body.stream or line.body.partial_images:
        raise invalid("body.stream", "Invalid 'body.stream': a batch streams nothing.")
    if line.body.response_format == "url":
        message = "Invalid 'body.response_format': a batch has b64_json, as a URL works for an hour."
        raise invalid("body.response_format", message)
    if line.body.deadline_ms is not None:
        message = "Invalid 'body.deadline_ms': a batch has its completion_window."
        raise invalid("body.deadline_ms", message)


def _check_new(custom_id: str, number: int, seen: dict[str, int]) -> None:
    if custom_id in seen:
        message = f"Invalid 'custom_id': line {seen[custom_id]} has {custom_id[:SHOWN]!r}, too."
        raise invalid("custom_id", message)
    seen[custom_id] = number


def _shown(text: bytes) -> str:
    start = text.strip()[:SHOWN].decode("utf-8", "replace")
    return repr(start)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
