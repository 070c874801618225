"""Recipes: what a distillation does, as YAML checked by pydantic. An empty recipe but for its
teacher is the published one; the shipped files in `recipes/` hold only what differs.

Numbers without a source of their own come from `sid.md` (arXiv 2509.25127 and its released code).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from .errors import DistillError
from .sid import WEIGHTINGS
from .spec import MAX_STEPS, Renoise, uniform_levels

SHIPPED = Path(__file__).parent / "recipes"
SHORTHANDS = {"guidance": "preset", "data": "source"}  # sections that one word can stand for

Stage = Literal["fake", "sid", "combined"]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _word_stands_for(key: str, content: Any) -> Any:
    return {key: content} if isinstance(content, str) else content


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
        content = _word_stands_for(SHORTHANDS["guidance"], content)
        preset = content.get("preset") if isinstance(content, dict) else None
        return {**PRESETS[preset], **content} if preset in PRESETS else content


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
        return _word_stands_for(SHORTHANDS["data"], content)


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


class Recipe(Strict):
    """One distillation.

    Raises:
        ValidationError: an unknown key, a wrong type or a value out of range; see `load_recipe`.
    """

    teacher: str
    """Folder of a flow-matching diffusers pipeline, or the name of a shipped teacher."""
    init: str | None = None
    """A student that the generator starts from, folder or shipped name; by default the teacher itself. A
    data-aided run from a student of a data-free one is the published one, SiD2a (`sid.md` 2.9)."""
    prompts: str = "shapes:train"
    """`shapes:train`, or a file: text with one prompt a line, or JSONL with `{"prompt": ...}`."""
    data: Data | None = None
    """Real images, for a data-aided run."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """Width and height in pixels; the teacher's own by default."""
    time_scale: PositiveFloat | None = None
    """The networks are told `time_scale * t`; the family's by default. A TrigFlow teacher (SANA-Sprint)
    whose folder does not say that it is one takes 1."""

    steps: int = Field(default=4, ge=1, le=MAX_STEPS)
    """N: the student is trained as an N-step generator on the levels 1 - k/N."""
    step_counts: tuple[int, ...] = ()
    """Step counts the student offers; by default all that divide N, whose levels N was trained on."""
    renoise: Renoise = "fresh"

    iterations: PositiveInt = 4000
    batch: PositiveInt = 256
    """Images per update."""
    accumulation: PositiveInt = 1
    """Parts a batch is computed in."""
    fake_updates: PositiveInt = 1
    """Fake score updates for each generator update."""

    alpha: float = 1.0
    weighting: Literal[tuple(WEIGHTINGS)] = "1_minus_sigma"  # type: ignore[valid-type]
    generator_scale: PositiveFloat = 100.0
    """Factor of the generator loss; with Adam it acts against eps only."""
    fake_scale: PositiveFloat = 1.0
    guidance: Guidance = Guidance()
    text: Text = Text()
    noise_levels: NoiseLevels = NoiseLevels()
    optimizer: Optimizer = Optimizer()
    adversarial: Adversarial = Adversarial()

    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per iteration of the moving average of the generator; none in the paper."""
    keep: Literal["ema", "live", "both"] | None = None
    """Weights of the student; `both` puts the live ones in `run/live`. Default: the average, if any."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` runs the networks under autocast; parameters stay float32."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float16"

    seed: int = Field(default=0, ge=0, lt=2**31)
    quality: Literal["shapes"] | None = None
    """Judge of the quality curve; the best student by it is kept."""
    quality_every: PositiveInt = 200
    quality_images: int = Field(default=256, ge=2)
    samples_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 100

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.batch % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} does not divide batch {self.batch}")
        if self.keep in ("ema", "both") and self.ema is None:
            raise ValueError(f"keep: {self.keep} needs ema, e.g. ema: 0.99")
        if self.data is None and self.adversarial != Adversarial():
            raise ValueError("adversarial: needs real images, e.g. data: shapes")
        if self.data is not None and self.weighting == "sid_legacy":
            raise ValueError("weighting: sid_legacy is no function of time; with data take another")
        wrong = [n for n in self.step_counts if not 1 <= n <= MAX_STEPS]
        if wrong:
            raise ValueError(f"step_counts {wrong}: expected 1 ... {MAX_STEPS}")
        return self

    @property
    def levels(self) -> dict[int, tuple[float, ...]]:
        """Noise levels of each step count on offer."""
        counts = self.step_counts or [n for n in range(1, self.steps + 1) if self.steps % n == 0]
        return {n: uniform_levels(n) for n in counts}

    @property
    def digest(self) -> str:
        """Of everything but where latents are kept."""
        content = self.model_dump_json(exclude={"data": {"cache"}})
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or a YAML file, with `key=value` overrides (dots reach inside).

    Raises:
        DistillError: no such recipe, bad YAML, an unknown key, a wrong type or value.
    """
    content = _read(_find(name_or_path))
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise DistillError(f"recipe {name_or_path}: {_explain(error)}") from error


def shipped_recipes() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _find(name_or_path: str) -> Path:
    for candidate in (SHIPPED / f"{name_or_path}.yaml", Path(name_or_path)):
        if candidate.is_file():
            return candidate
    names = ", ".join(shipped_recipes())
    raise DistillError(f"no recipe {name_or_path!r}: give a YAML file or one of {names}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DistillError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DistillError(f"recipe {path}: expected `key: value` lines, got a {type(content).__name__}")
    return content


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise DistillError(f"--set {override}: expected key=value, e.g. --set batch=64")
    *parents, last = key.split(".")
    for parent in parents:
        inside = content.get(parent, {})
        if parent in SHORTHANDS:
            inside = _word_stands_for(SHORTHANDS[parent], inside)
        if not isinstance(inside, dict):
            raise DistillError(f"--set {override}: {parent} has no keys of its own")
        content[parent] = inside
        content = inside
    try:
        content[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise DistillError(f"--set {override}: the value is not valid YAML") from error


def _explain(error: ValidationError) -> str:
    """The first problem in one line, with what would be accepted."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parent: Any = Recipe
        for part in first["loc"][:-1]:
            parent = _model_of(parent.model_fields[part].annotation)
        return f"unknown key {where!r}; known: {', '.join(parent.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (got {first['input']!r})" if where else message


def _model_of(annotation: Any) -> Any:
    """The section that an annotation allows, also of an optional one."""
    return next((part for part in get_args(annotation) if part is not type(None)), annotation)
