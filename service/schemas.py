"""Requests and responses on the wire, as the OpenAI client sends and reads them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from engines.runtime.sampler import MAX_SEED

from .errors import SHOWN, invalid
from .pictures import Format

Quality = Literal["low", "medium", "high"]
MAX_IMAGES = 10
MAX_DEADLINE_MS = 24 * 60 * 60 * 1000


def _printable(prompt: str) -> str:
    if all(character.isspace() or unicodedata.category(character) == "Cf" for character in prompt):
        raise PydanticCustomError("invalid_value", "a prompt needs at least one visible character")
    for position, character in enumerate(prompt):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            message = f"unusable character U+{ord(character):04X} at position {position}"
            raise PydanticCustomError("invalid_value", message)
    return prompt


def _whole(text: str) -> str:
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("invalid_value", "expected Unicode without NUL and lone surrogates")
    return text


def whole_inside(content: Any) -> Any:
    """What JSON may hold, each text of it checked."""
    if isinstance(content, str):
        _whole(content)
    elif isinstance(content, dict):
        for key, value in content.items():
            whole_inside(key)
            whole_inside(value)
    elif isinstance(content, list):
        for value in content:
            whole_inside(value)
    return content


Text = Annotated[str, AfterValidator(_whole)]
"""What can be written down: a lone surrogate has no UTF-8 form, PostgreSQL takes no NUL."""


def _opaque(background: str | None) -> str | None:
    if background == "transparent":
        message = "transparent pictures are not supported; use opaque or auto"
        raise PydanticCustomError("unsupported_value", message)
    return background


class ImagesRequest(BaseModel):
    """`POST /v1/images/generations`; null means the default, as at OpenAI."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str, AfterValidator(_printable)] = Field(description="What to draw")
    model: str | None = Field(None, description="A model of GET /v1/models; by default the first one")
    n: int | None = Field(None, ge=1, le=MAX_IMAGES, description="How many pictures, 1 by default")
    size: str | None = Field(
        None, description="WxH among the model's sizes, or auto", examples=["auto", "64x64"]
    )
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = Field(
        None,
        description="low, medium, high are 1, 2, 4 steps; standard is medium, hd is high; auto leaves them to the "
        "server; high by default",
    )
    output_format: Format | None = Field(None, description="png by default")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of a jpeg or webp file, 100 by default"
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json by default")
    background: Annotated[Literal["auto", "opaque", "transparent"] | None, AfterValidator(_opaque)] = None
    stream: bool | None = Field(None, description="Server-sent events: each picture when it is ready")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="With stream: estimates to be sent while a picture is being drawn"
    )
    moderation: Literal["auto", "low"] | None = Field(None, description="Accepted, without effect")
    style: Literal["vivid", "natural"] | None = Field(None, description="Accepted, without effect")
    user: Text | None = Field(
        None,
        description="Who asks: has a fair share on a server without API keys, and stays with one version",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Of the first picture; the next have seed+1, ...; random by default",
    )
    num_inference_steps: int | None = Field(
        None, ge=1, description="A step count of the model; overrides quality"
    )
    deadline_ms: int | None = Field(
        None,
        ge=1,
        le=MAX_DEADLINE_MS,
        description="Answer within this time, with an error if it cannot be done",
    )


def unique(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Fields as they come -> fields by name; for `json.loads` as its `object_pairs_hook`.

    Raises:
        ServiceError: one is given twice, of which parsers take the one or the other.
    """
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)[:SHOWN]
        raise invalid(twice, f"Parameter '{twice}' is given more than once.", "duplicate_parameter")
    return found


def check_unique(body: bytes) -> None:
    """
    Raises:
        ServiceError: the body is JSON, and an object in it names a field twice.
    """
    try:
        json.loads(body, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return  # who needs JSON will say so


class ImageObject(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: None = None
    seed: int


class InputTokens(BaseModel):
    text_tokens: int
    image_tokens: int = 0


class OutputTokens(BaseModel):
    text_tokens: int = 0
    image_tokens: int


class Usage(BaseModel):
    """Words and marks of the prompt in, latent positions of the pictures out."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens
    output_tokens_details: OutputTokens


class ImagesResponse(BaseModel):
    """The OpenAI response; `quality` and `num_inference_steps` are what was used."""

    created: int
    data: list[ImageObject]
    background: Literal["opaque"] = "opaque"
    output_format: Format
    quality: Quality
    size: str
    usage: Usage
    model: str
    num_inference_steps: int


class Digests(BaseModel):
    bundle: str
    files: dict[str, str]


class ModelObject(BaseModel):
    """An OpenAI model object plus what is served under the name and the proof that it is right."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fewstep"
    steps: list[int]
    sizes: list[str]
    default_size: str
    batch_sizes: list[int]
    backend: str | None = Field(description="What runs it; none while it is not in memory")
    precision: str
    memory_bytes: int | None = Field(description="What it takes in memory, as measured when it was loaded")
    state: Literal["ready", "loading", "stalled", "unloaded"] = Field(
        description="An unloaded model is loaded when it is asked for"
    )
    version: str = Field(description="NAME@NUMBER of what serves, a name for it in requests")
    digests: Digests
    parity: dict[str, Any] = Field(description="The certificate made at export")
    quality: dict[str, Any] | None = Field(description="The student's quality card, if it has one")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class VersionObject(BaseModel):
    id: str = Field(description="NAME@NUMBER; as a request's `model` it pins the version")
    object: Literal["model.version"] = "model.version"
    number: int
    digest: str = Field(description="Of the bundle; NAME@sha256:... pins it, too")
    state: Literal["serving", "canary", "previous", "retired"] = Field(
        description="previous is what a rollback brings back; a retired one answers only while it is loaded"
    )
    share: float = Field(description="Of the requests that name the model alone")
    published_at: int
    reason: str
    gate: dict[str, Any] | None
    loaded: bool = Field(description="Whether it is in memory")


class VersionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[VersionObject]


class PublishRequest(BaseModel):
    """`POST /v1/models/{id}/versions`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    bundle: Text = Field(description="A folder, a shipped name, or a name or digest of the store")
    share: float = Field(1.0, gt=0, le=1, description="Of the requests; below 1 it is a canary")
    reason: Text = Field("", max_length=1000)
    gate: Annotated[dict[str, Any] | None, AfterValidator(whole_inside)] = Field(
        None, description="What is known of its quality; told, not judged"
    )


class LoadRequest(BaseModel):
    """`POST /v1/models/{id}/load`; without a bundle, what the model has."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    bundle: Text | None = Field(None, description="As of a version to be published to all")


class AliasObject(BaseModel):
    """Another name of a model, or of a version of it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    alias: Text
    model: Text


class AliasList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AliasObject]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    error: ErrorBody


class Health(BaseModel):
    status: Literal["live", "ready", "starting", "draining", "failed", "stalled"]
    models: dict[str, Literal["ready", "loading", "stalled", "unloaded"]] = {}
