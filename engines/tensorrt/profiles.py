"""Which shapes a plan is made for: one optimisation profile for each picture size of the bundle.

Height, width and text length are fixed in a profile, so that kernels are chosen for exactly these; the
batch runs from one to the largest of the bundle, and is tuned for the largest.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..bundle import Bundle, Size, Tensor
from ..errors import EngineError

Shape = tuple[int, ...]

OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
FUNCTIONS: dict[str, Callable[..., int]] = {"Max": max, "Min": min}


class Range(BaseModel):
    """The shapes that one input may have, and the one to be fast at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Shape) -> bool:
        return len(shape) == len(self.min) and all(
            low <= length <= high for low, length, high in zip(self.min, shape, self.max)
        )


Profile = dict[str, Range]
"""Of every input."""


def profiles(bundle: Bundle, part: str, inputs: tuple[Tensor, ...]) -> tuple[Profile, ...]:
    """The profiles of a part whose graph has `inputs`; the text encoder sees no sizes and has one."""
    sizes = bundle.manifest.sizes[:1] if part == "text_encoder" else bundle.manifest.sizes
    largest = max(bundle.manifest.batch_sizes)
    return tuple(_profile(bundle, inputs, size, largest) for size in sizes)


def _profile(bundle: Bundle, inputs: tuple[Tensor, ...], size: Size, largest: int) -> Profile:
    low, high = (input_shapes(bundle, inputs, size, batch) for batch in (1, largest))
    return {name: Range(min=low[name], opt=high[name], max=high[name]) for name in low}


def input_shapes(bundle: Bundle, inputs: tuple[Tensor, ...], size: Size, batch: int) -> dict[str, Shape]:
    """The shape of each input for `batch` pictures of `size`.

    Raises:
        EngineError: an axis of the bundle's graphs is not one of those that the export names.
    """
    _, height, width = bundle.spec.latent_shape(size)
    known = {"batch": batch, "latent_height": height, "latent_width": width, **text_lengths(bundle)}
    conditioning = {tensor.name: tensor for tensor in bundle.manifest.graphs["text_encoder"].outputs}
    shapes = {tensor.name: conditioning.get(tensor.name, tensor).shape for tensor in inputs}
    return {name: tuple(axis_length(axis, known) for axis in shape) for name, shape in shapes.items()}


def text_lengths(bundle: Bundle) -> dict[str, int]:
    """Axis name -> tokens, of the inputs of the text encoder: `input_ids_2` is the second tokenizer's."""
    lengths = {}
    for tensor in bundle.manifest.graphs["text_encoder"].inputs:
        number = tensor.name.rpartition("_")[2]
        text = bundle.spec.text[int(number) - 1 if number.isdecimal() else 0]
        lengths[str(tensor.shape[1])] = text.max_length
    return lengths


def axis_length(axis: int | str, known: Mapping[str, int]) -> int:
    """An axis as the manifest has it: a number, a name, or a sum such as `text_length + 77`.

    Raises:
        EngineError: it holds anything else.
    """
    try:
        return _value(ast.parse(str(axis), mode="eval").body, known)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
        names = ", ".join(known)
        raise EngineError(f"axis {axis!r}: expected a number or a sum of {names}") from error


def _value(node: Any, known: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return known[name]
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_value(left, known), _value(right, known))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return FUNCTIONS[name](*[_value(one, known) for one in arguments])
    raise TypeError(node)
