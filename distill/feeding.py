"""How a teacher's tokenizers are fed: the family's default, as far as the teacher has it, and the recipe's wish."""

from __future__ import annotations

from typing import Any

from .errors import DistillError
from .families import Family
from .recipe import Text
from .spec import TextSpec


def feeding(family: Family, modules: Any, wish: Text) -> tuple[TextSpec, ...]:
    """What `generator.json` will say under `text`.

    Args:
        family: Its default feeding is shortened to what the tokenizers of a smaller model allow.
        modules: The diffusers pipeline; text encoders that it lacks are not fed.
        wish: The recipe's length and instruction, for the encoder of long texts.

    Raises:
        DistillError: the encoder is missing, or the family has no instruction of its own.
    """
    specs = [_fitting(spec, modules) for spec in family.text if getattr(modules, spec.tokenizer) is not None]
    last = specs[-1]
    if (wish.length or wish.instruction) and last.tokenizer != family.text[-1].tokenizer:
        raise DistillError(f"text: this model has no {family.text[-1].tokenizer}")
    if wish.length:
        last = last.model_copy(update={"max_length": wish.length})
    if wish.instruction:
        last = _instructed(last, getattr(modules, last.tokenizer), _instruction(family, wish))
    return (*specs[:-1], last)


def _fitting(spec: TextSpec, modules: Any) -> TextSpec:
    limit = getattr(modules, spec.tokenizer).model_max_length
    return spec.model_copy(update={"max_length": min(spec.max_length, limit)})


def _instruction(family: Family, wish: Text) -> str:
    if isinstance(wish.instruction, str):
        return wish.instruction
    if family.instruction is None:
        raise DistillError(f"text.instruction: {family.name} was trained without one; give its words")
    return family.instruction()


def _instructed(spec: TextSpec, tokenizer: Any, instruction: str) -> TextSpec:
    """Room for the instruction, whose tokens but the first are dropped behind the encoder.

    Lengths as in `SanaPipeline`: the instruction's beginning-of-text token, and its last one, which
    can merge with the prompt, are counted once.
    """
    room = len(tokenizer.encode(instruction)) + spec.max_length - 2
    return spec.model_copy(
        update={"template": instruction + "{prompt}", "max_length": room, "kept": spec.max_length}
    )
