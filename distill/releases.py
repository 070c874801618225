"""Published few-step models: what they are known by, and how they are sampled.

A pipeline folder holds the networks but not how they are to be sampled. For the models in `RELEASES`
that is known (sources in `docs/import.md`); for any other the caller says it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import DistillError
from .families import Family
from .pipeline import read_json
from .spec import MAX_STEPS, Sampler

INDEX = "model_index.json"
SID = re.compile(r"sid(a|-alpha)?-(flow|dit)-", re.IGNORECASE)
SPRINT = re.compile(r"sana[-_]?sprint", re.IGNORECASE)
SIZE = re.compile(r"-(\d+)-res")

Size = tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A pipeline folder by its configuration; no weight has been read.

    Attributes:
        folder: Where it lies.
        name: Of the folder, or its id on the hub.
        family: Its architecture.
        transformer: Configuration of the transformer.
        scheduler: Configuration of the scheduler.
    """

    folder: Path
    name: str
    family: Family
    transformer: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    @property
    def guidance_input(self) -> bool:
        return bool(self.transformer.get("guidance_embeds"))

    @property
    def sprint(self) -> bool:
        """Whether it is SANA-Sprint itself, whose stock pipeline steps angles; its teachers take no guidance."""
        return self.family.trigflow and self.guidance_input

    @property
    def reads_long_text(self) -> bool:
        """Whether it has the last text encoder of its family: Stable Diffusion 3 may come without T5."""
        return self.family.text[-1].tokenizer in parts(self.folder)


@dataclass(frozen=True)
class Sampling:
    """How a few-step model is sampled, as far as its folder does not say.

    Attributes:
        sampler: `sid` at levels 1 - k/N, or `euler` at the levels of its scheduler.
        steps: Step counts it is offered with.
        guidance: Value of the guidance input, for networks that have one.
        text_length: Tokens of the encoder of long texts; by default the family's.
        instruction: Whether prompts follow the family's instruction, if it has one.
        size: Width and height in pixels; by default the pipeline's own.
    """

    sampler: Sampler
    steps: tuple[int, ...] = (1, 2, 4)
    guidance: float | None = None
    text_length: int | None = None
    instruction: bool = True
    size: Size | None = None


@dataclass(frozen=True)
class Release:
    """A published few-step model.

    Attributes:
        name: In words.
        matches: Whether a candidate is one.
        sampling: As its authors sample it; sources in `docs/import.md`.
    """

    name: str
    matches: Callable[[Candidate], bool]
    sampling: Sampling


def _is_schnell(found: Candidate) -> bool:
    """FLUX without its teacher's guidance input and without the shift by the picture's size."""
    flux = found.family.guidance
    return flux and not found.guidance_input and not found.scheduler.get("use_dynamic_shifting")


RELEASES = (
    Release("SiD-DiT", lambda found: SID.match(_last(found.name)) is not None, Sampling("sid", guidance=1.0)),
    Release("SANA-Sprint", lambda found: found.sprint, Sampling("sid", guidance=4.5)),
    Release("FLUX.1-schnell", _is_schnell, Sampling("euler", text_length=256)),
    Release(
        "SD3.5-Large-Turbo",
        lambda found: "3.5-large-turbo" in found.name.lower(),
        Sampling("euler", steps=(4,), text_length=256),
    ),
)


def sampling_of(found: Candidate, wishes: Mapping[str, Any]) -> Sampling:
    """How `found` is sampled: as published, but for `wishes`, fields of `Sampling` by name.

    Raises:
        DistillError: not a model known here and no `sampler` wished for, or a wish that it cannot fulfil.
    """
    known = next((release.sampling for release in RELEASES if release.matches(found)), None)
    if known is None and "sampler" not in wishes:
        names = ", ".join(release.name for release in RELEASES)
        raise DistillError(
            f"{found.name} is none of the few-step models known here ({names}): if it is one, say how it is "
            "sampled with --sampler; a teacher becomes one with `fewstep distill`"
        )
    length = known.text_length if known and found.reads_long_text else None
    published = replace(known, text_length=length, size=_size_in(found.name)) if known else None
    sampling = replace(published, **wishes) if published else Sampling(**wishes)
    if not sampling.steps or not all(1 <= steps <= MAX_STEPS for steps in sampling.steps):
        raise DistillError(f"steps {list(sampling.steps)}: expected counts from 1 to {MAX_STEPS}")
    if found.guidance_input and sampling.guidance is None:
        raise DistillError(
            f"{found.name}: its network has a guidance input: give the value it is sampled with by --guidance"
        )
    if "guidance" in wishes and not found.guidance_input:
        raise DistillError(f"{found.name}: guidance: its network has no such input, and no other is used")
    return sampling


def parts(folder: Path) -> list[str]:
    """The folders that a pipeline's index names."""
    index = read_json(folder / INDEX)
    return [name for name, value in index.items() if isinstance(value, list) and any(value)]


def _size_in(name: str) -> Size | None:
    """The picture size that a SiD-DiT release has in its name; a FLUX folder does not say it elsewhere."""
    side = SIZE.search(name)
    return (int(side[1]), int(side[1])) if side else None


def _last(name: str) -> str:
    return name.rpartition("/")[2]
