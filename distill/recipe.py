"""Recipes: what a distillation does, as YAML checked by pydantic. An empty recipe but for its
teacher is the published one; the shipped files in `recipes/` hold only what differs.

Numbers without a source of their own come from `sid.md` (arXiv 2509.25127 and its released code).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from .errors import DistillError
from .sections import (
    Adapter,
    Adversarial,
    Data,
    Guidance,
    NoiseLevels,
    Optimizer,
    Stage,
    Strict,
    Text,
    spelled_out,
)
from .sid import WEIGHTINGS
from .spec import MAX_STEPS, Renoise, uniform_levels

SHIPPED = Path(__file__).parent / "recipes"

__all__ = [
    "Adapter", "Adversarial", "Data", "Guidance", "NoiseLevels", "Optimizer", "Recipe", "Stage", "Text",
    "load_recipe", "shipped_recipes",
]  # fmt: skip


class Recipe(Strict):
    """One distillation.

    Raises:
        ValidationError: an unknown key, a wrong type or a value out of range; see `load_recipe`.
    """

    teacher: str
    """Folder of a flow-matching diffusers pipeline, or the name of a shipped teacher."""
    prompts: str = "shapes:train"
    """`shapes:train`, or a file: text with one prompt a line, or JSONL with `{"prompt": ...}`."""
    init: str | None = None
    """A student that the generator starts from, folder or shipped name; by default the teacher itself. A
    data-aided run from a student of a data-free one is the published one, SiD2a (`sid.md` 2.9)."""
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
    """The noise of the generator's later steps: new, the first again, or the one that x and D imply."""

    iterations: PositiveInt = 4000
    """Each updates the fake score network and then the generator."""
    max_minutes: PositiveFloat | None = None
    """Ends the training early, after so many minutes, with the student as it is then."""
    batch: PositiveInt = 256
    """Images per update, over all ranks."""
    accumulation: PositiveInt = 1
    """Parts a batch is computed in; each is shared by the ranks."""
    fake_updates: PositiveInt = 1
    """Fake score updates for each generator update."""

    alpha: float = 1.0
    """Of the generator's loss (`sid.md` 2.4)."""
    weighting: Literal[tuple(WEIGHTINGS)] = "1_minus_sigma"  # type: ignore[valid-type]
    """w(t) of the generator's loss, in x0 space (`sid.md` 2.4)."""
    generator_scale: PositiveFloat = 100.0
    """Factor of the generator loss; with Adam it acts against eps only."""
    fake_scale: PositiveFloat = 1.0
    guidance: Guidance = Guidance()
    text: Text = Text()
    noise_levels: NoiseLevels = NoiseLevels()
    optimizer: Optimizer = Optimizer()
    adversarial: Adversarial = Adversarial()

    adapter: Adapter | None = None
    """`lora`, or its settings: fake score network and generator are adapters on the teacher's own
    weights, so that one copy of these is in memory instead of three. Default: all weights are trained."""
    activation_checkpointing: bool = False
    """Activations of all three networks are computed again in the backward pass instead of kept."""
    compile: bool = False
    """The blocks of all three networks go through `torch.compile`: minutes at the start, then less time for each
    iteration, and other rounding. Needs a C++ compiler and Python's headers, on a GPU Triton besides."""
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
    """Of the student's weights on disk."""

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
        if self.adapter is not None and self.parallel == "fsdp":
            raise ValueError("parallel: fsdp cannot shard weights that roles share; with adapter use ddp")
        if self.adapter is not None and self.init is not None:
            raise ValueError(
                "init: with an adapter the generator starts as the teacher, whose weights it shares"
            )
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
        """Of all that says what is trained, and not where latents are kept, how long and how fast."""
        content = self.model_dump_json(exclude={"data": {"cache"}, "max_minutes": True, "compile": True})
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or a YAML file, with `key=value` overrides (dots reach inside).

    Raises:
        DistillError: no such recipe, bad YAML, an unknown key, a wrong type or value.
    """
    return _checked(_read(_find(name_or_path)), overrides, name_or_path)


def teacher_recipe(teacher: str, overrides: Sequence[str] = ()) -> Recipe:
    """The first shipped recipe of a teacher, else the published run on it.

    Raises:
        DistillError: an override is wrong.
    """
    for name in shipped_recipes():
        if load_recipe(name).teacher == teacher:
            return load_recipe(name, overrides)
    return _checked({"teacher": teacher}, overrides, f"of {teacher}")


def is_recipe(name_or_path: str) -> bool:
    """Whether it is the name of a shipped recipe or a file, and not a teacher."""
    return name_or_path in shipped_recipes() or Path(name_or_path).is_file()


def _checked(content: dict[str, Any], overrides: Sequence[str], name: str) -> Recipe:
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise DistillError(f"recipe {name}: {_explain(error)}") from error


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
        inside = spelled_out(parent, content.get(parent, {}))
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
