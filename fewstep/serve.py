"""`fewstep serve`: one flag for each of the server's settings."""

from __future__ import annotations

import argparse

from service.settings import Settings, read_settings


def add_settings(command: argparse.ArgumentParser) -> None:
    """A flag for each setting but `models`, which has `--model`; help from the field's description."""
    for name, field in Settings.model_fields.items():
        if name == "models":
            continue
        default = field.get_default(call_default_factory=True)
        note = f"{field.description} (FEWSTEP_{name.upper()}; default: {default})"
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
