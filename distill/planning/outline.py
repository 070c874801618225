"""A pipeline known by its configuration alone: the stock classes with weights that take no memory.

All modules are built of PyTorch's fake tensors, which have shapes, types and storages but no data. The
training code runs on them as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import hub
from ..errors import DistillError
from ..families import Conditioning, Family, family_named, repeat
from ..feeding import feeding
from ..pipeline import Pipeline, family_of, find_pipeline, read_json
from ..recipe import Text
from ..spec import FILE_NAME, GeneratorSpec, TextSpec

PUBLISHED = Path(__file__).with_name("published.yaml")
CHARACTERS_PER_TOKEN = (
    4  # of English prose, in Gemma's and T5's vocabularies; the instruction is not tokenized here
)

Part = tuple[str, str, Mapping[str, Any]]
"""Library, class, configuration."""


class Weightless(FakeTensorMode):
    """Under this mode tensors are made without memory; numbers read from them are zero."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0
        return super().__torch_dispatch__(func, types, args, kwargs)

    # A deep copy of such a tensor copies its mode; two modes do not mix.
    def __deepcopy__(self, memo: object) -> Weightless:
        return self


@dataclass(frozen=True)
class Tokenizer:
    """What feeding a text encoder needs to know of its tokenizer."""

    model_max_length: int

    def encode(self, text: str) -> Sequence[int]:
        return range(len(text) // CHARACTERS_PER_TOKEN)


@dataclass(frozen=True)
class Outline(Pipeline):
    """A pipeline without weights; its prompts are padding."""

    embedded: dict[tuple[TextSpec, ...], Conditioning] = field(default_factory=dict)

    def read(self, count: int, text: Sequence[TextSpec] | None = None) -> Conditioning:
        """Runs the text encoders on `count` prompts."""
        text = self.text if text is None else text
        tokens = {}
        for number, spec in enumerate(text, start=1):
            suffix = "" if number == 1 else f"_{number}"
            for name in ("input_ids", "attention_mask"):
                tokens[name + suffix] = torch.ones(count, spec.max_length, dtype=torch.long)
        return self.family.embed(self.family.encoders(self.modules), tokens, text)

    def _embed(self, prompts: Sequence[str], text: Sequence[TextSpec]) -> Conditioning:
        """Conditioning of the right shapes; the encoders run once for each feeding."""
        if tuple(text) not in self.embedded:
            self.embedded[tuple(text)] = self.read(1, text)
        return repeat(self.embedded[tuple(text)], len(prompts))


@cache
def published() -> dict[str, dict[str, Any]]:
    """Family and parts of the pipelines whose configuration is shipped, by their id on the hub."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(PUBLISHED.read_text())["pipelines"]
    return content


def outline(name_or_path: str, text: Text | None = None, time_scale: float | None = None) -> Outline:
    """A pipeline by folder, shipped name or hub id, without its weights and without a network.

    To be called, and its result used, under `Weightless`.

    Raises:
        DistillError: no such folder, or a hub id that is neither published here nor in the cache.
    """
    if name_or_path in published() and not Path(name_or_path).is_dir():
        parts = dict(published()[name_or_path])
        folder, family, lengths = Path(name_or_path), family_named(parts.pop("family")), {}
    else:
        folder = _local(name_or_path)
        family, parts, lengths = family_of(folder), _parts(folder), _lengths(folder)
    modules = _modules(family, parts, lengths)
    if (folder / FILE_NAME).is_file():
        spec = GeneratorSpec.load(folder)
        return Outline(folder, family, spec.text, spec.time_scale, modules, spec)
    scale = time_scale or family.time_scale * modules.transformer.config.get("timestep_scale", 1.0)
    return Outline(folder, family, feeding(family, modules, text or Text()), scale, modules)


def _local(name_or_path: str) -> Path:
    if not hub.is_repository(name_or_path) or Path(name_or_path).is_dir():
        return find_pipeline(name_or_path)
    folder = hub.cached(name_or_path)
    if folder is None:
        known = ", ".join(published())
        raise DistillError(
            f"the configuration of {name_or_path} is not known here: fetch it with `hf download "
            f"{name_or_path} --include '*.json'`, or give a folder or one of {known}"
        )
    return folder


def _parts(folder: Path) -> dict[str, Part]:
    """The modules that `model_index.json` names, with their own configurations."""
    parts: dict[str, Part] = {}
    for name, entry in read_json(folder / "model_index.json").items():
        path = folder / name / "config.json"
        if isinstance(entry, list) and entry[0] and path.is_file():
            parts[name] = (entry[0], entry[1], read_json(path))
    return parts


def _lengths(folder: Path) -> dict[str, int]:
    """The longest text of each tokenizer."""
    files = folder.glob("tokenizer*/tokenizer_config.json")
    read = {path.parent.name: read_json(path).get("model_max_length") for path in files}
    return {name: int(length) for name, length in read.items() if length}


def _modules(family: Family, parts: Mapping[str, Part], lengths: Mapping[str, int]) -> Any:
    """The diffusers pipeline, its tokenizers replaced by stand-ins."""
    import diffusers

    tokenizers: dict[str, Tokenizer | None] = {
        spec.tokenizer: Tokenizer(lengths.get(spec.tokenizer, spec.max_length)) for spec in family.text
    }
    encoders = dict(zip(tokenizers, family.text_encoders, strict=True))
    built: dict[str, Any] = {name: _build(*part) for name, part in parts.items()}
    for tokenizer, encoder in encoders.items():
        if encoder not in built:
            built[encoder] = tokenizers[tokenizer] = None
    return getattr(diffusers, family.pipeline)(**built, **tokenizers, scheduler=None)


def _build(library: str, name: str, config: Mapping[str, Any]) -> torch.nn.Module:
    import diffusers
    import transformers

    try:
        kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
        module = kind.from_config(config) if library == "diffusers" else kind(kind.config_class(**config))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DistillError(f"a {library} {name} cannot be built of its configuration: {reason}") from error
    return module.requires_grad_(False).eval()  # type: ignore[no-any-return]
