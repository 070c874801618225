"""`fewstep serve` and `fewstep worker`: a flag for each setting that they read; API keys."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from service.settings import PREFIX, Settings, as_variable, read_settings

OF_SERVER = tuple(name for name in Settings.model_fields if name != "models")
"""All but `models`, which has `--model`."""
OF_WORKER = (
    "data_dir",
    "database_url",
    "jobs_backend",
    "jobs_ray_address",
    "jobs_ray_gpus",
    "jobs_devices",
    "jobs_nice",
    "jobs_threads",
    "jobs_retries",
    "jobs_lease_seconds",
    "jobs_stop_seconds",
    "jobs_keep_students",
    "jobs_keep_checkpoints",
    "jobs_clip",
    "jobs_fid_features",
    "jobs_fid_statistics",
    "jobs_server",
    "jobs_server_key",
    "artifacts_url",
    "log_format",
    "log_level",
)


def add_settings(command: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """A flag for each of these settings, with help from the field's description."""
    for name in names:
        field = Settings.model_fields[name]
        default = as_variable(field.get_default(call_default_factory=True))
        note = f"{field.description} ({PREFIX}{name.upper()}{default and f'; default: {default}'})"
        flag = "--" + name.replace("_", "-")
        command.add_argument(flag, dest=name, help=note.replace("%", "%%"), metavar=name.upper())


def serve(options: argparse.Namespace) -> int:
    """Runs the server until a signal; flags win over the environment."""
    from service.server import serve as run

    return run(_settings(options, models=options.model))


def work(options: argparse.Namespace) -> int:
    """Runs jobs until a signal; flags win over the environment."""
    from service.worker import work as run

    return run(_settings(options))


def _settings(options: argparse.Namespace, **more: object) -> Settings:
    given = {name: getattr(options, name, None) for name in Settings.model_fields} | more
    return read_settings(**{name: value for name, value in given.items() if value is not None})


def add_key(options: argparse.Namespace) -> None:
    from service.keys import add_key as add

    print(add(options.file, options.name, options.limit, options.admin, options.jobs))
