"""The reference pages, from the code: `python -m scripts.reference [FOLDER]`, by default docs/reference.

Commands come from the parser, routes from the OpenAPI document, settings and recipe keys from their pydantic models,
metrics from the registry. A test holds the committed pages to what this writes.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from prometheus_client import Metric
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distill import recipe as recipes
from distill.metrics.tables import markdown
from distill.sections import Strict
from fewstep.cli import parser
from service.app import create_app
from service.settings import Settings, as_variable

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "*Written from the code by `python -m scripts.reference`; changes belong there.*\n"
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minLength": "length at least",
    "maxLength": "length at most",
}
METHODS = ("get", "post", "put", "patch", "delete")


def main(argv: Sequence[str]) -> None:
    folder = Path(argv[0]) if argv else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page())


def _page(title: str, *parts: str) -> str:
    text = "\n\n".join([f"# {title}", NOTE.strip(), *(part.strip() for part in parts if part.strip())])
    return text.replace(str(Path.home()), "~") + "\n"


def _cell(text: object) -> str:
    """On one line; what is not code must not be taken for HTML."""
    parts = " ".join(str(text).split()).replace("|", "\\|").split("`")
    return "`".join(part if inside % 2 else part.replace("<", "&lt;") for inside, part in enumerate(parts))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return markdown(head, [[_cell(cell) for cell in row] for row in rows]) if rows else ""


# -- commands ---------------------------------------------------------------------------------------


def commands() -> str:
    codes = (
        "Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted with state saved."
    )
    return _page("Commands", codes, *_commands(parser()))


def _commands(top: argparse.ArgumentParser) -> Iterator[str]:
    for group in _groups(top):
        helps = {action.dest: action.help or "" for action in group._choices_actions}
        for name, command in group.choices.items():
            yield f"## {command.prog}\n\n{_sentence(helps.get(name, ''))}\n\n{_arguments(command)}"
            yield from _commands(command)


def _groups(command: argparse.ArgumentParser) -> list[Any]:
    return [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]


def _arguments(command: argparse.ArgumentParser) -> str:
    if command.prog.endswith(" serve"):
        return "One flag for each of the [settings](settings.md), and `--model NAME=BUNDLE …`."
    silent = (argparse._HelpAction, argparse._SubParsersAction)
    shown = [action for action in command._actions if not isinstance(action, silent)]
    return _table(["argument", "what"], [[_usage(action), _what(action)] for action in shown])


def _usage(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else None)
    if not action.option_strings:
        many = {"*": " …", "+": " …", "?": " (optional)"}.get(str(action.nargs), "")
        return f"`{value or action.dest.upper()}`{many}"
    takes = (
        "" if action.nargs == 0 else f" {value or action.dest.upper()}" + " …" * (action.nargs in ("+", "*"))
    )
    return f"`{action.option_strings[-1]}{takes}`" + (" (needed)" if action.required else "")


def _what(action: argparse.Action) -> str:
    text = (action.help or "") % {"default": action.default, "prog": ""} if action.help else ""
    plain = action.default in (None, False, argparse.SUPPRESS) or action.default == []
    said = plain or "default" in text
    return text if said else f"{text} (default: {action.default})".strip()


# -- routes -----------------------------------------------------------------------------------------


def routes() -> str:
    whole = document()
    found = [
        _route(path, method, operation)
        for path, methods in whole["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]
    objects = [_object(name, schema) for name, schema in whole["components"]["schemas"].items()]
    live = "A running server has the same as OpenAPI at `/openapi.json` and as a page at `/docs`."
    return _page("REST", live, *found, "## Objects", *objects)


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of a server with all of its routes."""
    with TemporaryDirectory() as folder:
        made: dict[str, Any] = create_app(Settings(data_dir=Path(folder))).openapi()
    return made


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"## {method.upper()} {path}", operation.get("description", "")]
    parameters = operation.get("parameters", [])
    rows = [[f"`{p['name']}`", p["in"], _type(p["schema"]), p.get("description", "")] for p in parameters]
    parts.append(_table(["parameter", "in", "type", "what"], rows))
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Body, `{media}`: {_type(content['schema'])}")
    parts.append("Answers: " + ", ".join(_answers(operation["responses"])))
    return "\n\n".join(part for part in parts if part)


def _answers(responses: dict[str, Any]) -> Iterator[str]:
    for status, response in responses.items():
        contents = response.get("content", {}).items()
        bodies = [
            _type(content["schema"]) if "schema" in content else f"`{media}`" for media, content in contents
        ]
        yield f"{status} {' or '.join(bodies)}".strip()


def _object(name: str, schema: dict[str, Any]) -> str:
    return "\n\n".join(filter(None, [f"### {name}", schema.get("description", ""), _fields(schema)]))


def _fields(schema: dict[str, Any]) -> str:
    needed = schema.get("required", [])
    rows = [
        [f"`{name}`" + (" (needed)" if name in needed else ""), _type(one), _described(one)]
        for name, one in schema.get("properties", {}).items()
    ]
    return _table(["field", "type", "what"], rows)


def _described(schema: dict[str, Any]) -> str:
    inside = [schema, *schema.get("anyOf", [])]
    limits = [f"{words} {one[key]:.12g}" for one in inside for key, words in BOUNDS.items() if key in one]
    default = schema.get("default")
    if default is not None and not isinstance(default, dict):
        shown = f"{default:.4g}" if isinstance(default, float) else json.dumps(default)
        limits.append(f"default `{shown}`")
    return "; ".join(part for part in (schema.get("description", "").rstrip("."), *limits) if part)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _link(schema["$ref"])
    if "allOf" in schema:
        return " and ".join(map(_type, schema["allOf"]))
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(map(_type, schema.get("anyOf") or schema["oneOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum") or [schema["const"]])
    if "prefixItems" in schema:
        return ", ".join(map(_type, schema["prefixItems"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


# -- settings, metrics ------------------------------------------------------------------------------


def settings() -> str:
    rows = [
        [f"`FEWSTEP_{name.upper()}`", f"`{_flag(name)}`", _default(field), field.description or ""]
        for name, field in Settings.model_fields.items()
    ]
    how = "Each is an environment variable and a flag of `fewstep serve`; the flag wins."
    return _page("Settings of the server", how, _table(["variable", "flag", "default", "what"], rows))


def _flag(name: str) -> str:
    return "--model" if name == "models" else "--" + name.replace("_", "-")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    with patch.dict("os.environ", {"XDG_DATA_HOME": ""}):
        value = as_variable(field.get_default(call_default_factory=True))
    return value and f"`{value}`"


def metrics() -> str:
    with TemporaryDirectory() as folder:
        registry = create_app(Settings(data_dir=Path(folder))).state.service.metrics.registry
    rows = sorted(
        [
            f"`{_sampled(family)}`",
            family.type,
            ", ".join(getattr(one, "_labelnames", ())),
            family.documentation,
        ]
        for one in registry._collector_to_names
        for family in getattr(one, "describe", one.collect)()  # what watches the process describes nothing
    )
    where = "`GET /metrics`: Prometheus text, OpenMetrics on request. The names are frozen by a test."
    return _page("Metrics", where, _table(["name", "type", "labels", "what"], rows))


def _sampled(family: Metric) -> str:
    """The name under which samples come: counters end in `_total`, infos in `_info`."""
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


# -- recipes ----------------------------------------------------------------------------------------


def recipe_keys() -> str:
    schema = recipes.Recipe.model_json_schema()
    kinds = {
        kind.__name__: kind for field in recipes.Recipe.model_fields.values() for kind in _sections(field)
    }
    what = "YAML; an empty recipe but for its teacher is the published run, and unknown keys are errors."
    parts = [what, _fields(_explained(schema, recipes.Recipe)), "## Sections"]
    parts += [_object(name, _explained(schema["$defs"][name], kind)) for name, kind in kinds.items()]
    shipped = ", ".join(f"`{name}`" for name in sorted(recipes.shipped_recipes()))
    return _page("Recipe keys", *parts, f"## Shipped recipes\n\n{shipped}")


def _sections(field: FieldInfo) -> list[type[Strict]]:
    inside = getattr(field.annotation, "__args__", (field.annotation,))
    return [one for one in inside if isinstance(one, type) and issubclass(one, Strict)]


def _explained(schema: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The schema, with the string below each field as its description."""
    body = ast.parse(inspect.getsource(model)).body[0].body  # type: ignore[attr-defined]
    said = {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }
    fields = {name: {**one, "description": said.get(name, "")} for name, one in schema["properties"].items()}
    return {**schema, "properties": fields, "description": inspect.getdoc(model)}


def _link(reference: str) -> str:
    name = reference.rsplit("/", 1)[-1]
    return f"[{name}](#{name.lower()})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".") if text else ""


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "rest.md": routes,
    "settings.md": settings,
    "metrics.md": metrics,
    "recipes.md": recipe_keys,
}

if __name__ == "__main__":
    main(sys.argv[1:])
