"""What the server knows of recipes: their schema, and the shipped ones. Made by `fewstep.jobs.known_recipes`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

from ..errors import SHOWN, ServiceError, invalid

FILE = Path(__file__).with_name("recipes.json")
PARAM = "method.sid"
SAID_ELSEWHERE = {"teacher": "model", "prompts": "training_file", "seed": "seed"}
"""Keys of a recipe that a job has as fields of its own."""
WILD = frozenset("*?[")
PUBLISHED_RUN = "published"
"""The name of the recipe that says nothing."""


class Recipes:
    """Checks what clients ask for, with the patterns of what this server lets them use."""

    def __init__(self, teachers: Sequence[str], data: Sequence[str]) -> None:
        """
        Args:
            teachers: Names, folders or hub ids, `*` for any part of one.
            data: Real images likewise, as in a recipe's `data.source`.
        """
        self.teachers, self.data = teachers, data

    def resolve(self, teacher: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The whole recipe of a job, but for the keys in `SAID_ELSEWHERE`.

        Args:
            overrides: Keys of a recipe; `recipe` names the shipped one that they change, by default the first one
                of the teacher, else the published run, which is also to be had by that name.

        Raises:
            ServiceError: 400, a teacher, recipe, key or value that will not do; says what would.
        """
        if not allowed(teacher, self.teachers):
            message = f"There is no teacher {teacher[:SHOWN]!r} here; known: {', '.join(self.teachers)}."
            raise invalid("model", message, "model_not_found")
        given = dict(overrides)
        base = self._base(teacher, given.pop("recipe", None))
        _refuse_elsewhere(given)
        given = _spelled_out(given)
        _check(given)
        self._check_places(given)
        return merge(base, given)

    def offered(self) -> dict[str, dict[str, Any]]:
        """Teacher -> the whole recipe of a job that changes nothing. A pattern stands for the shipped ones it fits."""
        shipped = [its["teacher"] for its in known()["recipes"].values()]
        named = [one for one in self.teachers if one in shipped or not WILD & set(one)]
        fitting = [one for one in shipped if allowed(one, self.teachers)]
        properties = known()["schema"]["properties"]
        defaults = {key: its.get("default") for key, its in properties.items() if key not in SAID_ELSEWHERE}
        return {teacher: merge(defaults, self._base(teacher, None)) for teacher in [*named, *fitting]}

    def _base(self, teacher: str, name: Any) -> dict[str, Any]:
        recipes: dict[str, dict[str, Any]] = known()["recipes"]
        if name is None:
            name = next((known for known, its in recipes.items() if its["teacher"] == teacher), None)
            if name is None:
                return {}
        if name == PUBLISHED_RUN:
            return {}
        own = [known for known, its in recipes.items() if its["teacher"] == teacher]
        if name not in own:
            known_ones = f"known: {', '.join([*own, PUBLISHED_RUN])}"
            raise invalid(f"{PARAM}.recipe", f"There is no recipe {name!r} of {teacher}; {known_ones}.")
        return _spelled_out({k: v for k, v in recipes[name].items() if k not in SAID_ELSEWHERE})

    def _check_places(self, given: Mapping[str, Any]) -> None:
        """A client may not have the server read whatever path it likes."""
        source = (given.get("data") or {}).get("source")
        if source is not None and not allowed(source, self.data):
            message = f"Pictures {source[:SHOWN]!r} are not to be had here; known: {', '.join(self.data)}."
            raise invalid(f"{PARAM}.data", message)
        init = given.get("init")
        if init is not None and not allowed(init, _students(self.teachers)):
            known_ones = ", ".join(_students(self.teachers))
            raise invalid(f"{PARAM}.init", f"There is no student {init[:SHOWN]!r} here; known: {known_ones}.")
        if isinstance(given.get("embedding_cache"), str) or (given.get("data") or {}).get("cache"):
            raise invalid(
                PARAM, "Folders of caches are the server's own: embedding_cache is true or false here."
            )


@cache
def known() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


def allowed(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits; nothing that climbs out of a folder does."""
    return ".." not in PurePosixPath(name).parts and any(fnmatchcase(name, pattern) for pattern in patterns)


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key, but one that is named anew (a preset, a source) takes nothing over."""
    merged = dict(base)
    for key, value in overrides.items():
        before, name = merged.get(key), known()["shorthands"].get(key)
        if isinstance(before, dict) and isinstance(value, dict) and name not in value:
            value = {**before, **value}
        merged[key] = value
    return merged


def _students(teachers: Sequence[str]) -> list[str]:
    return [f"{teacher}-sid" for teacher in teachers]


def _refuse_elsewhere(given: Mapping[str, Any]) -> None:
    for key, field in SAID_ELSEWHERE.items():
        if key in given:
            raise invalid(f"{PARAM}.{key}", f"A job's {key} is its field '{field}'.", "unknown_parameter")


def _spelled_out(given: Mapping[str, Any]) -> dict[str, Any]:
    """`guidance: lsg` -> `guidance: {preset: lsg}`."""
    shorthands = known()["shorthands"]
    return {
        key: {shorthands[key]: value} if key in shorthands and isinstance(value, str) else value
        for key, value in given.items()
    }


def _check(given: Mapping[str, Any]) -> None:
    error = best_match(_validator().iter_errors(given))
    if error is not None:
        raise _told(error)


@cache
def _validator() -> Any:
    """Numbers as in a recipe: 48.0 is no count, and NaN is none at all."""
    types = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_count, "number": _is_number})
    schema = known()["schema"]
    optional = {key: value for key, value in schema.items() if key != "required"}
    return extend(Draft202012Validator, type_checker=types)(optional)


def _is_count(_checker: Any, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: Any, value: object) -> bool:
    return _is_count(checker, value) or (isinstance(value, float) and math.isfinite(value))


def _told(error: ValidationError) -> ServiceError:
    where = ".".join([PARAM, *map(str, error.absolute_path)])
    if error.validator == "additionalProperties":
        names = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(names))[0]
        offered = ", ".join(name for name in names if name not in SAID_ELSEWHERE)
        message = f"Unknown parameter: '{where}.{unknown[:SHOWN]}'; known: {offered}."
        return invalid(f"{where}.{unknown}"[:SHOWN], message, "unknown_parameter")
    return invalid(where, f"Invalid '{where}': {error.message[: 2 * SHOWN]}.")
