"""The flags of `fewstep jobs submit` as the body of a request; the server says whether it will do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.errors import ServiceError
from service.jobs.prompt_files import NAMED_SETS
from service.jobs.recipes import PUBLISHED_RUN, SAID_ELSEWHERE, known

Json = dict[str, Any]
Upload = Callable[[Path], str]


def request_of(options: argparse.Namespace, upload: Upload) -> Json:
    """
    Args:
        upload: Sends a prompt set to the server; returns its id.

    Raises:
        ServiceError: a file is not there, or a flag does not say what it should.
    """
    own, recipe = recipe_of(options.what)
    for setting in options.set:
        override(recipe, setting)
    body = {
        "model": own.get("teacher"),
        "method": {"type": "sid", "sid": recipe},
        "seed": own.get("seed") if options.seed is None else options.seed,
        "suffix": options.suffix,
        "metadata": dict(options.metadata) or None,
        "precision": options.precision,
        "gate": gate_of(options),
        "publish": _publish(options),
        "integrations": _webhook(options.webhook),
    }
    body["training_file"] = _prompts(options.prompts or own.get("prompts") or "shapes:train", upload)
    if options.gate_prompts:
        body["prompts"] = _prompts(options.gate_prompts, upload)
    return {name: value for name, value in body.items() if value is not None}


def recipe_of(what: str) -> tuple[Json, Json]:
    """What a recipe says that a job has fields for, and the rest.

    Args:
        what: The name of a shipped recipe, a YAML or JSON file, or a teacher, which has the recipe that the
            server knows for it.
    """
    recipes = known()["recipes"]
    if what in recipes:
        return {key: recipes[what].get(key) for key in SAID_ELSEWHERE}, {"recipe": what}
    path = Path(what)
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        content = _read(path)
        own = {key: content.pop(key, None) for key in SAID_ELSEWHERE}
        if not own["teacher"]:
            raise ServiceError(f"recipe {what}: teacher is missing")
        return own, {"recipe": PUBLISHED_RUN, **content}
    return {"teacher": what}, {}


def _read(path: Path) -> Json:
    import yaml

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ServiceError(f"cannot read recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ServiceError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ServiceError(f"recipe {path}: expected `key: value` lines, got a {type(content).__name__}")
    return content


def override(recipe: Json, setting: str) -> None:
    """`KEY=VALUE` into a recipe; dots reach inside, and a value is JSON or a word."""
    key, separator, text = setting.partition("=")
    if not separator or not all(key.split(".")):
        raise ServiceError(f"--set {setting}: expected KEY=VALUE, e.g. --set batch=64")
    *parents, last = key.split(".")
    for parent in parents:
        inside = recipe.setdefault(parent, {})
        if isinstance(inside, str) and parent in known()["shorthands"]:
            inside = recipe[parent] = {known()["shorthands"][parent]: inside}
        if not isinstance(inside, dict):
            raise ServiceError(f"--set {setting}: {parent} has no keys of its own")
        recipe = inside
    try:
        recipe[last] = json.loads(text, parse_constant=str)
    except ValueError:
        recipe[last] = text


def gate_of(options: argparse.Namespace) -> Json | None:
    """None: nothing is measured."""
    bounds = {side: dict(getattr(options, side)) for side in ("at_least", "at_most", "worse_by")}
    gate = {side: found for side, found in bounds.items() if found}
    sizes = {"images": options.gate_images, "seeds": options.gate_seeds, "steps": options.gate_steps}
    gate |= {name: value for name, value in sizes.items() if value is not None}
    return gate or ({} if options.publish else None)


def _publish(options: argparse.Namespace) -> Json | None:
    shares = {"canary": options.canary, "canary_seconds": options.canary_seconds}
    given = {name: value for name, value in shares.items() if value is not None}
    if options.publish is None:
        if given:
            raise ServiceError(
                "--canary and --canary-seconds are of a student that is served: give --publish NAME"
            )
        return None
    return {"model": options.publish, **given}


def _webhook(url: str | None) -> list[Json] | None:
    return [{"type": "webhook", "webhook": {"url": url}}] if url else None


def _prompts(source: str, upload: Upload) -> str:
    if source in NAMED_SETS or source.startswith("file-"):
        return source
    path = Path(source)
    if not path.is_file():
        wanted = f"a .txt or .jsonl file, a file's id, or {' or '.join(NAMED_SETS)}"
        raise ServiceError(f"there are no prompts {source!r}: give {wanted} with --prompts")
    if not path.stat().st_size:
        raise ServiceError(f'{path} is empty; expected a prompt a line, or {{"prompt": "..."}} in each line')
    return upload(path)
