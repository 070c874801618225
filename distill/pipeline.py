"""Pipeline folders: a teacher or a student, loaded with diffusers and seen through its family."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import hub
from .errors import DistillError
from .families import FAMILIES, Conditioning, Family, tokenize
from .feeding import feeding
from .recipe import Text
from .spec import FILE_NAME, GeneratorSpec, TextSpec

SHIPPED = Path(__file__).parent / "shapes" / "models"
TRIGFLOW_SHIFT = 3.0  # of a teacher's levels, as in SANA's own scheduler (`flow_shift`)


@dataclass(frozen=True)
class Pipeline:
    """A diffusers pipeline and its family's way of feeding it.

    Attributes:
        folder: Where it was loaded from.
        family: Its architecture.
        text: How its tokenizers are fed.
        time_scale: The network is told `time_scale * t`.
        modules: The diffusers pipeline, in evaluation mode and without gradients.
        spec: The content of `generator.json`, for a student.
    """

    folder: Path
    family: Family
    text: tuple[TextSpec, ...]
    time_scale: float
    modules: Any
    spec: GeneratorSpec | None = None

    @property
    def name(self) -> str:
        """Its folder's name or its id on the hub."""
        return hub.name_of(self.folder)

    @property
    def transformer(self) -> torch.nn.Module:
        return self.modules.transformer  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def guidance_input(self) -> bool:
        """Whether the network takes a guidance scale as an input, as FLUX.1-dev does."""
        return has_guidance_input(self.transformer)

    @property
    def downsampling(self) -> int:
        """Pixels per latent position along each side."""
        return int(self.modules.vae_scale_factor)

    @property
    def patch(self) -> int:
        """Latent positions per token along each side."""
        return self.family.packing * int(self.modules.transformer.config.get("patch_size") or 1)

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if self.spec is not None:
            return self.spec.default_size
        latents = self.modules.transformer.config.get("sample_size")
        side = latents * self.downsampling if latents else self.modules.vae.config.sample_size
        return side, side

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(channels, height, width) for a picture of `size` = (width, height) pixels.

        Raises:
            DistillError: a side is not a multiple of what one token covers.
        """
        width, height = size or self.default_size
        multiple = self.downsampling * self.patch
        if width % multiple or height % multiple:
            raise DistillError(f"size {width}x{height}: width and height have to be multiples of {multiple}")
        channels = self.modules.transformer.config.in_channels // self.family.packing**2
        return channels, height // self.downsampling, width // self.downsampling

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of `prompts`, as a student is given them."""
        return self._embed(prompts, self.text)

    @torch.no_grad()
    def unconditional(self, count: int = 1) -> Conditioning:
        """The empty prompt, without the instruction if there is one, `count` times."""
        return self._embed([""] * count, [spec.plain() for spec in self.text])

    def _embed(self, prompts: Sequence[str], text: Sequence[TextSpec]) -> Conditioning:
        tokens = tokenize([getattr(self.modules, spec.tokenizer) for spec in text], text, prompts)
        encoders = self.family.encoders(self.modules)
        there = next(encoders[0].parameters()).device
        embedded = self.family.embed(encoders, {name: ids.to(there) for name, ids in tokens.items()}, text)
        return {name: value.to(self.device) for name, value in embedded.items()}

    @torch.no_grad()
    def decode(self, x0_BCHW: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in -1 ... 1."""
        return self.family.decode(self.modules.vae, x0_BCHW)

    @torch.no_grad()
    def encode(self, pictures_BCHW: Tensor) -> Tensor:
        """Clean latents of pictures [B, 3, H, W] in -1 ... 1."""
        return self.family.encode(self.modules.vae, pictures_BCHW)

    def new_transformer(self) -> torch.nn.Module:
        """Another one of the same configuration, with weights yet to come."""
        import diffusers

        _, name = self.modules.config["transformer"]  # sharding changes the class of the one there is
        made: torch.nn.Module = getattr(diffusers, name).from_config(self.modules.transformer.config)
        return made

    def join_transformer(self) -> None:
        """Moves the other parts to where the transformer is."""
        for part in self.modules.components.values():
            if isinstance(part, torch.nn.Module) and part is not self.transformer:
                part.to(self.device)

    def digest(self, only: str = "*") -> str:
        """SHA-256 over the names and contents of the folder's weights and configurations, or of `only`
        those of one part."""
        return folder_digest(self.folder, only)


def find_pipeline(name_or_path: str) -> Path:
    """The folder of a pipeline given by path, by the name of a shipped one, or by its id on the hub.

    Raises:
        DistillError: there is none, or the hub does not give it; the message lists the shipped names
            or says how to log in.
    """
    for candidate in (SHIPPED / name_or_path, Path(name_or_path)):
        if (candidate / "model_index.json").is_file():
            return candidate
    if (Path(name_or_path) / "pytorch_lora_weights.safetensors").is_file():
        raise DistillError(
            f"{name_or_path} holds a LoRA, which diffusers loads beside its teacher; for a student of its "
            "own distil with adapter.save=merged"
        )
    if Path(name_or_path).is_dir():
        raise DistillError(f"{name_or_path} is not a diffusers pipeline folder: it has no model_index.json")
    if hub.is_repository(name_or_path) and not Path(name_or_path).exists():
        return hub.download(name_or_path)
    shipped = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/model_index.json")))
    raise DistillError(
        f"no model {name_or_path!r}: give a diffusers pipeline folder, a hub id or one of {shipped}"
    )


def load_pipeline(
    name_or_path: str,
    device: str = "cpu",
    text: Text | None = None,
    time_scale: float | None = None,
    dtype: torch.dtype = torch.float32,
    few_step: bool = False,
) -> Pipeline:
    """Loads a teacher or student.

    Args:
        name_or_path: A folder, the name of a shipped pipeline, or an id on the hub.
        device: Where it is to run.
        text: How a teacher's tokenizers are fed, where it is not the family's default.
        time_scale: A teacher's, where it is not the family's. A student's own file says both.
        dtype: Of the weights in memory.
        few_step: Take few-step models that no student folder has been made of, too.

    Raises:
        DistillError: no such folder, not a diffusers pipeline, an unknown family, or not flow matching.
    """
    folder = find_pipeline(name_or_path)
    family = family_of(folder)
    spec = GeneratorSpec.load(folder) if (folder / FILE_NAME).is_file() else None
    modules = _load(folder, family, device, dtype)
    if spec is not None:
        return Pipeline(folder, family, spec.text, spec.time_scale, modules, spec)
    if has_guidance_input(modules.transformer) and not family.guidance and not few_step:
        raise DistillError(
            f"{folder}: the transformer has a guidance input, which no {family.name} teacher has: this is "
            "a few-step model; its teacher is meant (for SANA-Sprint …_teacher_diffusers), or `fewstep import`"
        )
    scale = time_scale or family.time_scale * modules.transformer.config.get("timestep_scale", 1.0)
    return Pipeline(folder, family, feeding(family, modules, text or Text()), scale, modules)


def has_guidance_input(transformer: Any) -> bool:
    return bool(transformer.config.get("guidance_embeds"))


def folder_digest(folder: Path, only: str = "*") -> str:
    """SHA-256 over the relative names and contents of a pipeline's JSON and safetensors files."""
    index = json.loads((folder / "model_index.json").read_text())
    parts = [folder / name for name in index if (folder / name).is_dir() and only in ("*", name)]
    files = sorted(
        path for part in parts for path in part.rglob("*") if path.suffix in (".json", ".safetensors")
    )
    total = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder)} {content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def family_of(folder: Path) -> Family:
    """The family of a pipeline folder, by its `model_index.json` and its scheduler.

    Raises:
        DistillError: an unknown pipeline, or not flow matching.
    """
    trigflow = _check_flow_matching(folder)
    name = read_json(folder / "model_index.json").get("_class_name")
    for family in FAMILIES.values():
        if name in (family.pipeline, *family.aliases) and family.trigflow == trigflow:
            return family
    known = ", ".join(dict.fromkeys(family.pipeline for family in FAMILIES.values()))
    raise DistillError(f"{folder}: cannot tell the family of a {name}; known pipelines: {known}")


def _check_flow_matching(folder: Path) -> bool:
    """Whether the flow is written as a TrigFlow; a scheduler that is neither is refused."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise DistillError(f"{folder}: no scheduler/scheduler_config.json; is the download complete?")
    config = read_json(path)
    name = str(config.get("_class_name"))
    prediction = config.get("prediction_type")
    if not (name.startswith("FlowMatch") or prediction in ("flow_prediction", "trigflow")):
        raise DistillError(
            f"{folder}: scheduler {name} is not flow matching; expected a FlowMatch… scheduler or "
            "prediction_type: flow_prediction or trigflow"
        )
    return prediction == "trigflow"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DistillError: it is not there, not JSON, or not an object.
    """
    if not path.is_file():
        raise DistillError(f"there is no {path}; is the download complete?")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DistillError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DistillError(f"{path}: expected an object, got a {type(content).__name__}")
    return content


def _load(folder: Path, family: Family, device: str, dtype: torch.dtype) -> Any:
    import diffusers

    quiet()
    absent = family.absent(read_json(folder / "model_index.json"))
    try:
        modules = getattr(diffusers, family.pipeline).from_pretrained(folder, dtype=dtype, **absent)
    except (OSError, ValueError) as error:
        raise DistillError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
    _check_whole(folder, modules)
    if family.trigflow:  # its scheduler steps angles and consistency models
        modules.register_modules(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=TRIGFLOW_SHIFT))
    modules.set_progress_bar_config(disable=True)
    for name, part in modules.components.items():
        if isinstance(part, torch.nn.Module):
            setattr(modules, name, part.requires_grad_(False).eval())
    try:
        return modules.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DistillError(f"device {device!r} cannot be used: {reason}") from error


def _check_whole(folder: Path, modules: Any) -> None:
    """Weights that a file lacks are left without memory by diffusers, and without a word."""
    for name, part in modules.components.items():
        if isinstance(part, torch.nn.Module):
            missing = [weight for weight, value in part.state_dict().items() if value.is_meta]
            if missing:
                names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
                raise DistillError(
                    f"{folder / name}: weights are missing: {names}; is the download complete?"
                )


def forget_paths(folder: Path) -> None:
    """Removes the place that each part was loaded from, which diffusers writes into its configuration."""
    for path in [folder / "model_index.json", *folder.glob("*/config.json")]:
        content = json.loads(path.read_text())
        content.pop("_name_or_path", None)
        path.write_text(json.dumps(content, indent=2) + "\n")


def quiet() -> None:
    """Loading and saving say nothing: their bars and notes would break up the command's own progress."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
