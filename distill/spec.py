"""`generator.json`: all that a sampler needs to know about a student besides its weights.

Whoever has this and three functions (encode, velocity, decode) can sample. See `sampler.py` for the
loop and `families/` for the functions.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import DistillError
from .files import write_json

FILE_NAME = "generator.json"
MAX_STEPS = 4

Renoise = Literal["fresh", "fixed", "ddim"]
Sampler = Literal["sid", "euler"]
Level = Annotated[float, Field(gt=0, le=1)]


class TextSpec(BaseModel):
    """How one tokenizer of the pipeline is fed, exactly as in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str = "tokenizer"
    """Sub-folder of the pipeline."""
    max_length: int = Field(gt=0)
    """Tokens per prompt; shorter prompts are padded on the right, longer ones cut."""
    template: str = "{prompt}"
    """What the encoder reads; SANA's instruction prefix goes here."""
    lowercase: bool = False
    """Lower-case and strip the prompt first, as `SanaPipeline` does."""
    kept: int | None = Field(default=None, gt=1)
    """Of the encoder's tokens the denoiser sees the first and the last `kept` - 1; by default all. This
    is how SANA drops its instruction."""

    def apply(self, prompt: str) -> str:
        if self.lowercase:
            prompt = prompt.lower().strip()
        return self.template.replace("{prompt}", prompt)

    def plain(self) -> TextSpec:
        """The same without the template: how the unconditional branch is fed."""
        length = self.kept or self.max_length
        return self.model_copy(update={"template": "{prompt}", "max_length": length, "kept": None})


class GeneratorSpec(BaseModel):
    """The contract between a student and whatever samples it (frozen; unknown keys are errors)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    family: str
    levels: dict[int, tuple[Level, ...]]
    """Noise levels t of each supported step count, falling from 1: `{4: (1, .75, .5, .25)}`."""
    sampler: Sampler = Field(default="sid", exclude_if=lambda kind: kind == "sid")
    """`sid` re-noises the clean estimate; `euler` steps along the flow, x + (t' - t) v. That is re-noising
    with the noise that x implies, so one loop runs both and the `renoise` of `euler` is `ddim`. Left out of
    the file where it is `sid`, as in files older than this setting."""
    renoise: Renoise = "fresh"
    """Noise of the later steps: new, the first one again, or the one the current latents imply."""
    time_scale: float = Field(default=1000.0, gt=0)
    """The network is told `time_scale * t`."""
    text: tuple[TextSpec, ...]
    guidance_embedding: float | None = None
    """Value of the guidance input, for architectures that have one (FLUX.1-dev students: 1.0)."""
    latent_channels: int = Field(gt=0)
    downsampling: int = Field(gt=0)
    """Pixels per latent position, along each side."""
    default_size: tuple[int, int]
    """Width and height in pixels."""
    teacher: str
    teacher_digest: str
    recipe_digest: str = ""

    @field_validator("levels")
    @classmethod
    def _levels_fall_from_one(cls, levels: dict[int, tuple[float, ...]]) -> dict[int, tuple[float, ...]]:
        for steps, row in levels.items():
            falls = all(a > b for a, b in itertools.pairwise(row))
            if not 1 <= steps <= MAX_STEPS or len(row) != steps or row[0] != 1 or not falls:
                raise ValueError(f"{steps} steps: expected {steps} levels falling from 1, got {list(row)}")
        return levels

    @model_validator(mode="after")
    def _euler_implies_its_noise(self) -> Self:
        if self.sampler == "euler" and self.renoise != "ddim":
            raise ValueError(f"sampler euler goes with renoise ddim, got {self.renoise}")
        return self

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a picture of `size` = (width, height) pixels."""
        width, height = size or self.default_size
        return self.latent_channels, height // self.downsampling, width // self.downsampling

    def save(self, folder: Path) -> None:
        write_json(folder / FILE_NAME, self.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> GeneratorSpec:
        """Reads `folder/generator.json`.

        Raises:
            DistillError: the file is missing or not a valid spec.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise DistillError(f"{folder} is not a student folder: it has no {FILE_NAME}")
        try:
            return cls.model_validate_json(path.read_text())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "file"
            raise DistillError(f"{path}: {where}: {first['msg']}") from error


def uniform_levels(steps: int) -> tuple[float, ...]:
    """Levels `1 - k / N`, k = 0 ... N-1 (`sid.md` 1.3; for N = 4: 1, .75, .5, .25)."""
    return tuple(1 - k / steps for k in range(steps))
