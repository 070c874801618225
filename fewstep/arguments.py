"""Values of flags: each function reads one, or says what would be accepted."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def two_or_more(text: str) -> int:
    if positive(text) < 2:
        raise argparse.ArgumentTypeError("expected at least 2: one picture has no spread to measure")
    return int(text)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63-1, got {text!r}")
    return int(text)


def integers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas, e.g. 1,2,4, got {text!r}")
    return [int(part) for part in parts]


def positives(text: str) -> list[int]:
    if 0 in integers(text):
        raise argparse.ArgumentTypeError(f"expected positive whole numbers with commas, got {text!r}")
    return integers(text)


def evaluation_seeds(text: str) -> list[int]:
    if max(integers(text)) >= 2**43:  # times a million, they are seeds of pictures
        raise argparse.ArgumentTypeError(f"expected seeds below 2^43, got {text!r}")
    return integers(text)


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def share(text: str) -> float:
    if not 0 < number(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, got {text!r}")
    return float(text)


def numbers(text: str) -> list[float]:
    try:
        return [number(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas, e.g. 1,2.5, got {text!r}") from None


def size(text: str) -> tuple[int, int]:
    width, separator, height = text.partition("x")
    if not (separator and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WxH, e.g. 512x512, got {text!r}")
    return int(width), int(height)
