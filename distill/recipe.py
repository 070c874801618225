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
    field_validator,
    model_validator,
)

from .errors import DistillError
from .sid import WEIGHTINGS
from .spec import MAX_STEPS, Renoise, uniform_levels

SHIPPED = Path(__file__).parent / "recipes"


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Guidance(Strict):
    """The guidance scales, u + kappa (v - u): 1 is none, 0 drops the text (`sid.md` 2.6)."""

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


class Recipe(Strict):
    """One distillation.

    Raises:
        ValidationError: an unknown key, a wrong type or a value out of range; see `load_recipe`.
    """

    teacher: str
    """Folder of a flow-matching diffusers pipeline, or the name of a shipped teacher."""
    prompts: str = "shapes:train"
    """`shapes:train`, or a file: text with one prompt a line, or JSONL with `{"prompt": ...}`."""
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
    """Images per update, over all ranks."""
    accumulation: PositiveInt = 1
    """Parts a batch is computed in; each is shared by the ranks."""
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

    adapter: Adapter | None = None
    """`lora`, or its settings: fake score network and generator are adapters on the teacher's own
    weights, so that one copy of these is in memory instead of three. Default: all weights are trained."""
    activation_checkpointing: bool = False
    """Activations of all three networks are computed again in the backward pass instead of kept."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several ranks: every network whole on each, or sharded over them (FSDP2)."""
    embedding_cache: bool | str = False
    """Prompts are encoded once, before training, and the text encoders leave the GPU; `true` keeps the
    embeddings with the run, a folder can be shared by runs."""

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

    @field_validator("adapter", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.batch % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} does not divide batch {self.batch}")
        if self.keep in ("ema", "both") and self.ema is None:
            raise ValueError(f"keep: {self.keep} needs ema, e.g. ema: 0.99")
        if self.adapter is not None and self.parallel == "fsdp":
            raise ValueError("parallel: fsdp cannot shard weights that roles share; with adapter use ddp")
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
        return "sha256:" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()


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
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise DistillError(f"--set {override}: {parent} has no keys of its own")
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
            annotation = parent.model_fields[part].annotation
            parent = next(iter(get_args(annotation)), annotation)  # X | None is X
        return f"unknown key {where!r}; known: {', '.join(parent.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (got {first['input']!r})" if where else message
