"""Runs a graph beside its module at shapes that it was not traced at.

A graph may be right at the traced shape and wrong elsewhere, and wrong for some values only: so batch,
height, width and length of the text vary, texts end in masked tails, and some images are all zero.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from onnx import ModelProto
from torch import Tensor

from ..errors import EngineError
from ..widen import widened
from .external import is_external
from .graphs import Part
from .trace import save

SHAPES = ((1, 0, 0, 0), (2, 1, 0, 1), (3, 0, 1, 2), (5, 1, 1, 0))
"""Batch; by how many patches height and width are larger; by how many tokens texts are shorter."""
SEEDS = (0, 1)


def probe(part: Part, model: ModelProto, bound: float, folder: Path | None = None) -> float:
    """The largest relative difference found; large weights of `model` lie in `folder`.

    Raises:
        EngineError: ONNX Runtime cannot run the graph at one of `SHAPES`, or differs from the module
            by more than `bound`, relative to the largest value.
    """
    session = _session(model, folder)
    worst = 0.0
    for shape in SHAPES:
        for seed in SEEDS:
            inputs = _inputs(part, shape, seed)
            off = _difference(part, session, inputs)
            worst = max(worst, off)
            if not off <= bound:  # true for NaN too
                shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
                raise EngineError(
                    f"graph {part.name} is off by {off:.2g} at {shapes}; at most {bound} is allowed"
                )
    return worst


def _session(model: ModelProto, folder: Path | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if is_external(model):  # weights are mapped; packed for speed they would be in memory once more
        options.add_session_config_entry("session.disable_prepacking", "1")
    with TemporaryDirectory(prefix="fewstep-") as temporary:
        file = (folder if folder and is_external(model) else Path(temporary)) / ".probed.onnx"
        save(widened(model), file)
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        file.unlink()
    return session


@torch.inference_mode()
def _difference(part: Part, session: ort.InferenceSession, inputs: dict[str, Tensor]) -> float:
    expected = part.module(*inputs.values())
    expected = (expected,) if isinstance(expected, Tensor) else expected
    known = {entry.name for entry in session.get_inputs()}
    feed = {name: value.numpy() for name, value in inputs.items() if name in known}
    try:
        found = session.run(list(part.outputs), feed)
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this one
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
        raise EngineError(f"graph {part.name} cannot be run at {shapes}: {error}") from error
    return float(np.max([_relative(a.numpy(), b) for a, b in zip(expected, found, strict=True)]))


def _relative(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    expected = expected.astype(np.float64)
    return float(np.max(np.abs(expected - found)) / (np.max(np.abs(expected)) or 1.0))


def _inputs(part: Part, shape: tuple[int, int, int, int], seed: int) -> dict[str, Tensor]:
    batch, taller, wider, shorter = shape
    rng = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, example in part.inputs.items():
        sides = list(example.shape)
        for axis, meaning in part.axes[name].items():
            sides[axis] += {
                "latent_height": taller * part.patch,
                "latent_width": wider * part.patch,
            }.get(meaning, -shorter if meaning.startswith("text_length") else 0)
        inputs[name] = _values(name, example, (batch, *sides[1:]), rng, zero=seed > 0)
    return inputs


def _values(name: str, example: Tensor, shape: tuple[int, ...], rng: torch.Generator, zero: bool) -> Tensor:
    if "mask" in name:
        lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=rng)
        mask: Tensor = torch.arange(shape[1]) < lengths
        return mask.to(example.dtype)
    if not example.is_floating_point():
        known: Tensor = example.unique()
        return known[torch.randint(len(known), shape, generator=rng)]
    if len(shape) == 1:
        return 1 - torch.rand(shape, generator=rng)
    values = torch.randn(shape, generator=rng)
    if zero:
        values[0] = 0
    return values
