"""Everything that can be set about the server, from the environment or the command line."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .errors import ServiceError, reason_of

PREFIX, FILE = "FEWSTEP_", "_FILE"
CLIENTS = ("FEWSTEP_URL", "FEWSTEP_KEY")
"""Which server `fewstep jobs` asks, and with which key; a server in the same environment takes no notice."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}(/[A-Za-z0-9][\w.-]{0,63})?", re.ASCII)
"""It stands in addresses, headers and labels."""
MODEL_NAME_FORM = "ASCII letters, digits, dots, dashes, underscores, and one slash between two such parts"
DEFAULT_MODELS = {"shapes-sana-sid": "shapes-sana-sid"}


def _data_home() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "fewstep"


class Settings(BaseSettings):
    """Each field is the environment variable `FEWSTEP_<NAME>` and a line of `fewstep serve --help`.

    The variable `FEWSTEP_<NAME>_FILE` names a file that holds the value.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

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
    database_url: SecretStr | None = Field(
        default=None,
        description="Where jobs are kept: postgresql://USER:PASSWORD@HOST/NAME; by default SQLite in the data folder",
    )
    max_file_bytes: int = Field(
        default=64 << 20, ge=1024, description="Largest file of POST /v1/files; larger ones get 413"
    )
    batch_max_lines: int = Field(
        default=50_000, ge=1, description="Requests in the file of a batch; a file with more gets 400"
    )
    batch_queue_limit: int = Field(
        default=100,
        ge=1,
        description="Batches of one key that are not at their end; beyond it new ones get 429",
    )
    jobs_queue_limit: int = Field(
        default=100, ge=1, description="Jobs that may wait for a runner; beyond it new ones get 429"
    )
    jobs_teachers: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("shapes-sana", "shapes-sd3", "shapes-flux"),
        description="Teachers that jobs may name, comma-separated: shipped names, folders, hub ids, with * for"
        " any part of them",
    )
    jobs_data: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("shapes",), description="Real pictures that jobs may name as data, likewise"
    )
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts that webhooks may go to, comma-separated, * for any part of a name; none by default",
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="Signs webhooks: whsec_ and 24 to 64 bytes in base64"
    )
    webhook_attempts: int = Field(
        default=8,
        ge=1,
        le=20,
        description="How often a webhook is sent until it is given up; at longer intervals",
    )
    open_admin: bool = Field(
        default=False,
        description="On a server without API keys, whether models may be changed from other machines, too",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Origins whose pages may call this server, comma-separated; none by default"
    )
    jobs_workers: bool = Field(
        default=True, description="Whether this server runs jobs; if not, a `fewstep worker` has to"
    )
    jobs_backend: Literal["local", "ray"] = Field(
        default="local", description="Where jobs run: on this machine, or on a Ray cluster"
    )
    jobs_ray_address: str | None = Field(
        default=None, description="The Ray cluster's Jobs API, e.g. http://10.0.0.1:8265"
    )
    jobs_ray_gpus: float = Field(default=1.0, ge=0, description="GPUs that a job asks the Ray cluster for")
    jobs_devices: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="GPUs for jobs as in CUDA_VISIBLE_DEVICES, comma-separated, one job at a time on each;"
        " by default one job at a time that sees all",
    )
    jobs_nice: int = Field(default=10, ge=0, le=19, description="How much serving goes before jobs")
    jobs_threads: int | None = Field(
        default=None, ge=1, description="CPU threads of a job; by default PyTorch decides"
    )
    jobs_retries: int = Field(
        default=2, ge=0, le=100, description="How often a job that crashes at one place is started again"
    )
    jobs_lease_seconds: float = Field(
        default=120.0,
        ge=1,
        le=3600,
        description="After how long without a sign of its runner a job may be taken by another one; its"
        " process stops by itself after half of that",
    )
    jobs_stop_seconds: float = Field(
        default=120.0, ge=0, le=3600, description="How long a job that is stopped may take to save its state"
    )
    jobs_keep_students: int | None = Field(
        default=None,
        ge=1,
        description="Of how many jobs of one name the artifacts are kept; by default of all",
    )
    jobs_keep_checkpoints: bool = Field(
        default=False, description="Whether a job's states are kept after it has succeeded"
    )
    jobs_clip: str | None = Field(
        default=None, description="CLIP for the gate's scores: a transformers folder or hub id"
    )
    jobs_fid_features: str | None = Field(
        default=None, description="Network for the gate's FID: a transformers folder, hub id or .pt file"
    )
    jobs_fid_statistics: str | None = Field(
        default=None, description="Statistics of real pictures for the gate's FID"
    )
    jobs_server: str = Field(
        default="http://127.0.0.1:8000",
        description="The server that a `fewstep worker` publishes on; they share one data folder",
    )
    jobs_server_key: SecretStr | None = Field(
        default=None, description="An administrator's key for that server, where it wants keys"
    )
    artifacts_url: str | None = Field(
        default=None, description="Where jobs leave what they make: an fsspec URL; by default the data folder"
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

    @property
    def jobs_folder(self) -> Path:
        """Where jobs work."""
        return self.data_dir / "jobs"

    @property
    def artifacts(self) -> str:
        return self.artifacts_url or str(self.data_dir.absolute() / "artifacts")

    @field_validator(
        "cors_origins", "jobs_devices", "jobs_teachers", "jobs_data", "webhook_hosts", mode="before"
    )
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("backend")
    @classmethod
    def _check_backend(cls, value: str) -> str:
        from engines.runtime import backend_names  # loads ONNX Runtime, which the command line does without

        if value not in (names := backend_names()):
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    @field_validator("jobs_server")
    @classmethod
    def _check_server(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("expected an address like http://api:8000")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = json.loads(value) if value.lstrip().startswith("{") else value.split(",")
        if isinstance(value, (list, tuple)):
            value = _by_name([_parse_model(entry) for entry in value if entry.strip()])
        return value

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not MODEL_NAME.fullmatch(name):
                raise ValueError(f"{name[:100]!r} cannot be a model's name; expected {MODEL_NAME_FORM}")
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
        ServiceError: a value is out of range, a file of one cannot be read, or there is no such setting;
            names it.
    """
    _check_names([*os.environ, *(PREFIX + name.upper() for name in overrides)])
    try:
        return Settings(**_from_files(os.environ) | overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        reason = first["msg"].removeprefix("Value error, ")
        raise ServiceError(f"{name} ({PREFIX}{name.upper()}): {reason}", param=name) from error


def as_variable(value: Any) -> str:
    """A setting as it is written in the environment; what is not set is empty."""
    if isinstance(value, dict):
        return ",".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def reachable(host: str) -> str:
    """Where a server that listens on `host` is reached from its own machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _check_names(variables: Iterable[str]) -> None:
    """A misspelt variable would otherwise be a setting that does nothing."""
    known = [PREFIX + name.upper() + ending for name in Settings.model_fields for ending in ("", FILE)]
    for variable in variables:
        if variable.startswith(PREFIX) and variable not in (*known, *CLIENTS):
            close = difflib.get_close_matches(variable, known, n=1, cutoff=0.8)
            hint = f"did you mean {close[0]}?" if close else "`fewstep serve --help` lists all of them"
            raise ServiceError(f"{variable} is not a setting; {hint}", param=variable)


def _from_files(environment: Mapping[str, str]) -> dict[str, str]:
    """`FEWSTEP_<NAME>_FILE` names a file that holds the value, as secrets are mounted."""
    values: dict[str, str] = {}
    for name in Settings.model_fields:
        variable = PREFIX + name.upper()
        file = environment.get(variable + FILE)
        if not file:
            continue
        if environment.get(variable):
            raise ServiceError(f"{variable} and {variable}{FILE} are both set; unset one", param=name)
        try:
            values[name] = secret_in(Path(file))
        except (OSError, ValueError) as error:
            wanted = f"a file with the value of {variable} is wanted"
            raise ServiceError(
                f"{variable}{FILE}: {file}: {reason_of(error)}; {wanted}", param=name
            ) from error
    return values


def secret_in(file: Path) -> str:
    """
    Raises:
        OSError: it cannot be read.
        ValueError: it is no text, or empty: a secret that was lost must not turn into a default.
    """
    content = file.read_text().strip()
    if not content:
        raise ValueError("it is empty")
    return content
