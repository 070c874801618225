"""Everything that can be set about the server, from the environment or the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .errors import ServiceError

DEFAULT_MODELS = {"shapes-sana-sid": "shapes-sana-sid"}


def _data_home() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "fewstep"


class Settings(BaseSettings):
    """Each field is the environment variable `FEWSTEP_<NAME>` and a line of `fewstep serve --help`."""

    model_config = SettingsConfigDict(
        env_prefix="FEWSTEP_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one")
    models: Annotated[dict[str, str], NoDecode] = Field(
        default=DEFAULT_MODELS,
        min_length=1,
        description="Models to serve, NAME=BUNDLE[,NAME=BUNDLE...]; a bundle is a folder, a shipped name or"
        " one in the store; the first one answers requests that name no model",
    )
    data_dir: Path = Field(default_factory=_data_home, description="Folder for what the server keeps")
    backend: str = Field(default="auto", description="Runtime for the bundles; auto takes the best one here")
    models_memory_mb: int = Field(
        default=0,
        ge=0,
        description="Memory for all models together; when it is full the longest unused one is unloaded, and"
        " loaded again when it is asked for; 0 for no bound",
    )
    threads: int | None = Field(
        default=None, ge=1, description="Threads of a CPU runtime; by default the usable cores, at most eight"
    )
    queue_limit: int = Field(
        default=256,
        ge=1,
        description="Images per model admitted and not yet finished; beyond it requests get 429",
    )
    queue_seconds: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds of work per model, as predicted, that may be waiting; beyond it requests get 429",
    )
    auto_patience: float = Field(
        default=3.0,
        ge=1,
        allow_inf_nan=False,
        description="Requests of quality auto get fewer steps when they would take this many times as long"
        " as on an idle server",
    )
    embedding_cache_mb: int = Field(
        default=64, ge=0, description="Memory per model for prompts that have been encoded; 0 for none"
    )
    result_cache_mb: int = Field(
        default=0,
        ge=0,
        description="Memory per model for finished pictures: equal requests with a seed are drawn once; 0 for none",
    )
    stall_seconds: float = Field(
        default=60.0,
        gt=0,
        allow_inf_nan=False,
        description="How long one batch may run before the engine counts as stalled and is restarted",
    )
    canary_seconds: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="How long no picture is drawn before a test picture is",
    )
    max_wait_ms: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="How long an image may wait for others to share its first batch",
    )
    max_body_bytes: int = Field(
        default=1 << 20, ge=1024, description="Largest request body; larger ones get 413"
    )
    body_seconds: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="How long a request body may take to arrive; slower ones get 408",
    )
    max_prompt_chars: int = Field(default=4000, ge=1, description="Longest prompt in characters")
    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        allow_inf_nan=False,
        description="On SIGTERM, how long admitted images may take before they are failed",
    )
    provenance: bool = Field(
        default=True,
        description="Whether pictures say inside their files how they were made, prompt included",
    )
    api_keys: Path | None = Field(
        default=None,
        description="File of API keys (`fewstep keys add`); with it, requests to /v1 need one",
    )
    open_admin: bool = Field(
        default=False,
        description="On a server without API keys, whether models may be changed from other machines, too",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Origins whose pages may call this server, comma-separated; none by default"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="Form of log lines")
    log_prompts: bool = Field(default=False, description="Whether log lines hold the prompts")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line"
    )

    @property
    def store(self) -> Path:
        """Where bundles are kept by name."""
        return self.data_dir / "bundles"

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _parse_origins(cls, value: Any) -> Any:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = json.loads(value) if value.lstrip().startswith("{") else value.split(",")
        if isinstance(value, (list, tuple)):
            value = _by_name([_parse_model(entry) for entry in value if entry.strip()])
        return value


def _by_name(pairs: list[tuple[str, str]]) -> dict[str, str]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"a name is given twice among {', '.join(names)}")
    return dict(pairs)


def _parse_model(entry: str) -> tuple[str, str]:
    """`NAME=BUNDLE` -> the pair; a bare bundle is served under its last path component."""
    name, separator, bundle = entry.strip().partition("=")
    if not separator:
        return Path(name).name, name
    if not name or not bundle:
        raise ValueError(f"{entry!r} is not NAME=BUNDLE")
    return name, bundle


def read_settings(**overrides: Any) -> Settings:
    """The environment's settings with `overrides` on top.

    Raises:
        ServiceError: a value is out of range; names the setting.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise ServiceError(f"{name} (FEWSTEP_{name.upper()}): {first['msg']}", param=name) from error
