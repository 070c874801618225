"""The sections of a recipe that have keys of their own; what says what they do is in `recipe.py`."""

from __future__ import annotations

import math
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

SHORTHANDS = {
    "guidance": "preset",
    "data": "source",
    "adapter": "type",
}  # sections that one word can stand for

Stage = Literal["fake", "sid", "combined"]


class Strict(BaseModel):
    """Unknown keys are errors, and so are values that only look like what is wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_lookalike(cls, value: Any, info: ValidationInfo) -> Any:
        """`true` is no 1, and 48.0 no count."""
        wanted = _types(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and bool not in wanted and wanted & {int, float}:
            raise ValueError("expected a number")
        if isinstance(value, float) and int in wanted and float not in wanted:
            raise ValueError("expected a whole number")
        return value


def _types(annotation: Any) -> set[Any]:
    """The alternatives that an annotation names."""
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_types, get_args(annotation)))
    return {annotation}


def spelled_out(section: str, content: Any) -> Any:
    """`data: shapes` -> `data: {source: shapes}`, for sections that one word can stand for."""
    one_word = isinstance(content, str) and section in SHORTHANDS
    return {SHORTHANDS[section]: content} if one_word else content


def _kappas(fake: float, teacher: float) -> dict[str, float]:
    return {"fake_train": fake, "fake_outer": fake, "fake_inner": fake, "teacher": teacher}


PRESETS: dict[str, dict[str, float]] = {
    # Certain: all commands of the released code. All networks alike, so that student and teacher share a target.
    "lsg": _kappas(fake=4.5, teacher=4.5),
    # Certain: Self-Forcing's SiD and DMD, whose scale 3 is written c + 3 (c - u): kappa 4 in the form used here.
    "teacher-only": _kappas(fake=1, teacher=4),
    # Certain: abstract of arXiv 2505.12674, no guidance in the teacher, no text in the fake network. For runs
    # with real images, whose discriminator keeps the text.
    "zero-cfg": _kappas(fake=0, teacher=1),
    # The sign is certain (same abstract), the numbers are not published in any source at hand: a choice.
    "anti-cfg": _kappas(fake=-1, teacher=1),
}
"""Named guidance strategies (`sid.md` 2.6): kappa 1 ... 3 of the fake network, kappa 4 of the teacher."""


class Guidance(Strict):
    """The guidance scales, u + kappa (v - u): 1 is none, 0 drops the text (`sid.md` 2.6).

    A preset's name alone will do, `guidance: zero-cfg`; scales given beside it come first,
    `guidance: {preset: teacher-only, teacher: 2}`.
    """

    preset: Literal[tuple(PRESETS)] | None = None  # type: ignore[valid-type]
    """A named strategy; by default `lsg`'s numbers."""
    fake_train: float = 4.5
    """kappa 1: of the fake score network in its own loss."""
    fake_outer: float = 4.5
    """kappa 2: of the fake score network in the difference d."""
    fake_inner: float = 4.5
    """kappa 3: of the fake score network in the second factor."""
    teacher: float = 4.5
    """kappa 4."""

    # The guidance *input* of a network that has one (FLUX.1-dev), apart from the scales above; the
    # released code fills both with one number. Other architectures ignore these three.
    teacher_embed: float = 3.5
    """The scale that FLUX.1-dev's own model card samples with."""
    fake_embed: float = 1.0
    student_embed: float = 1.0
    """In training and in the student's `generator.json` (`sid.md` 2.6)."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, content: Any) -> Any:
        content = spelled_out("guidance", content)
        preset = content.get("preset") if isinstance(content, dict) else None
        if isinstance(preset, str) and preset in PRESETS:
            return {**PRESETS[preset], **content}
        return content


class Text(Strict):
    """How the teacher's text encoders are fed, where that is not the family's default."""

    length: PositiveInt | None = None
    """Tokens of the encoder of long texts (Gemma, T5). By default SANA 300, SD3 77, FLUX 512."""
    instruction: bool | str = False
    """Put before each prompt; `true` is the one the architecture was trained with (SANA)."""


class NoiseLevels(Strict):
    """t = sigmoid(n), n ~ N(mean, std^2), for both losses (`sid.md` 1.3)."""

    mean: float = math.log(2)
    std: PositiveFloat = 1.6


class Data(Strict):
    """Real images with captions; they make a run data-aided (`sid.md` 2.9). The source's name alone
    will do, `data: pictures/`."""

    source: str
    """`shapes` (fresh renders of training scenes); a folder of pictures, each with its caption in a text
    file of the same name or in `metadata.jsonl` (`{"file_name": ..., "text": ...}`); or WebDataset shards
    (`shards/{0000..0099}.tar`, `shards/*.tar`) of pictures with `.txt` or `.json`."""
    count: PositiveInt | None = None
    """Pictures to use; by default all there are, of `shapes` 8192."""
    cache: Path | None = None
    """Where their latents are kept, encoded once for each VAE, size and state of the source; by default
    `~/.cache/fewstep/latents`."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, content: Any) -> Any:
        return spelled_out("data", content)


class Adversarial(Strict):
    """The discriminator of a data-aided run, and when it acts, by images seen (`sid.md` 2.9)."""

    generator_from: int = Field(default=20_000, ge=0)
    """Before that only the fake network is trained, as score network and discriminator."""
    combined_from: int = Field(default=40_000, ge=0)
    """Before that the generator is trained by SiD's loss alone, later by half of both."""
    weight: float = Field(default=1.0, ge=0)
    """lambda, of the generator's adversarial loss beside `generator_scale`."""
    discriminator_weight: float = Field(default=1.0, ge=0)
    """Of the discriminator's loss beside `fake_scale`."""

    @model_validator(mode="after")
    def _in_order(self) -> Adversarial:
        if self.combined_from < self.generator_from:
            raise ValueError(
                f"combined_from {self.combined_from} is before generator_from {self.generator_from}"
            )
        return self

    def stage(self, seen: int) -> Stage:
        """What is trained after `seen` images: the fake network alone, both, or both and adversarially."""
        if seen < self.generator_from:
            return "fake"
        return "sid" if seen < self.combined_from else "combined"


class Optimizer(Strict):
    """Adam without first moment; no weight decay, no clipping (`sid.md` 2.5)."""

    lr_generator: PositiveFloat = 5e-6
    lr_fake: PositiveFloat = 5e-6
    beta1: float = Field(default=0.0, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: PositiveFloat = 1e-8
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` lets both rates fall to zero at the end (not in the paper; steadies short runs)."""


class Adapter(Strict):
    """What is trained beside frozen weights that all three roles share (LoRA, arXiv 2106.09685)."""

    type: Literal["lora"] = "lora"
    rank: PositiveInt = 64
    alpha: PositiveInt | None = None
    """The update is scaled by alpha / rank; by default 1."""
    targets: tuple[str, ...] | None = None
    """Ends of the names of the adapted layers, e.g. `[to_q, to_v]`; by default the family's projections
    of attention and feed-forward layers."""
    save: Literal["merged", "lora"] = "merged"
    """`merged` leaves an ordinary student; `lora` a small folder for diffusers' `load_lora_weights`."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, content: Any) -> Any:
        return spelled_out("adapter", content)
