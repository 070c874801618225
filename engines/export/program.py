"""One part -> `<part>.pt2`, which PyTorch runs without the classes that it was made of."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import EngineError
from .graphs import Part
from .trace import dynamic_shapes, quiet

NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")
"""What the tracer notes of each operation: it names paths of this machine."""


def write_program(part: Part, folder: Path) -> tuple[str, ...]:
    """Writes `folder/<part>.pt2`, whose axes are dynamic as those of the graph are.

    Returns:
        The names of its inputs, in their order.

    Raises:
        EngineError: PyTorch cannot write it.
    """
    with quiet(), torch.no_grad():
        program = torch.export.export(
            part.module.eval(), tuple(part.inputs.values()), dynamic_shapes=dynamic_shapes(part)
        )
    for node in program.graph.nodes:
        for note in NOTES:
            node.meta.pop(note, None)
    file = folder / f"{part.name}.pt2"
    try:
        torch.export.save(program, file)
    except RuntimeError as error:
        raise EngineError(f"cannot write {file}: {error}") from error
    return tuple(part.inputs)
