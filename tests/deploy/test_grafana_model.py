"""The dashboards against Grafana's own model of dashboards, of the version that compose runs."""

from __future__ import annotations

import enum
import importlib.metadata
import json
import re
import types
import typing
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from .files import DEPLOY, dashboards

register_default_plugins()
DASHBOARDS = dashboards()

each_dashboard = pytest.mark.parametrize("name", sorted(DASHBOARDS))


def lost(given: Any, kept: Any, where: str = "") -> Iterator[str]:
    """What a dashboard has and Grafana's model of it has not."""
    if isinstance(given, dict):
        for name, value in given.items():
            if name not in kept:
                yield f"{where}.{name}"
            else:
                yield from lost(value, kept[name], f"{where}.{name}")
    elif isinstance(given, list):
        assert len(given) == len(kept), where
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{where}[{number}]")
    elif given != kept:
        yield f"{where}: {given!r} became {kept!r}"


def wrong(value: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Values that are not of the type that the model has for them."""
    kind, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted in (Any, object):
        return
    if kind in (typing.Union, types.UnionType):
        if all(list(wrong(value, one)) for one in inner):
            yield from [found for one in inner for found in wrong(value, one, where)][:1]
    elif kind is list and isinstance(value, list):
        for number, one in enumerate(value):
            yield from wrong(one, inner[0], f"{where}[{number}]")
    elif kind is dict and isinstance(value, dict):
        for name, one in value.items():
            yield from wrong(one, inner[1], f"{where}.{name}")
    elif kind is typing.Literal:
        if value not in inner:
            yield f"{where}: {value!r} is none of {inner}"
    elif isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        if value not in [one.value for one in wanted] and value not in list(wanted):
            yield f"{where}: {value!r} is none of {[one.value for one in wanted]}"
    elif not isinstance(value, (float, int) if wanted is float else kind or wanted):
        yield f"{where}: {value!r} is no {wanted}"
    elif hasattr(value, "to_json"):
        for name, hint in typing.get_type_hints(type(value)).items():
            yield from wrong(getattr(value, name), hint, f"{where}.{name}")


def problems(dashboard: dict[str, Any]) -> list[str]:
    model = Dashboard.from_json(dashboard)
    kept = json.loads(JSONEncoder(sort_keys=True).encode(model))
    return [*lost(dashboard, kept), *wrong(model, Dashboard)]


def test_the_model_is_that_of_the_grafana_in_compose() -> None:
    (image,) = re.findall(r"GRAFANA_IMAGE:-grafana/grafana:(\S+)}", (DEPLOY / "compose.yaml").read_text())
    assert importlib.metadata.version("grafana-foundation-sdk").split("!")[1] == image


@each_dashboard
def test_grafana_knows_all_that_is_in_a_dashboard(name: str) -> None:
    assert problems(DASHBOARDS[name]) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("panels", 0, "targets", 0, "legend"), "x", ".panels[0].targets[0].legend"),
        (("panels", 0, "gridPos", "w"), "12", "'12' is no"),
        (("panels", 0, "fieldConfig", "defaults", "units"), "s", ".defaults.units"),
        (("panels", 0, "description"), 3, "3 is no"),
        (("templating", "list", 0, "type"), "queries", "'queries' is none of"),
        (("templating", "list", 0, "multi"), "yes", "'yes' is no"),
        (("graphTooltip",), 7, "7 is none of"),
        (("refreshes",), "15s", ".refreshes"),
        (("time",), {"from": "now-1h", "until": "now"}, ".time.until"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_what_grafana_does_not_know_is_found(path: tuple[Any, ...], value: Any, told: str) -> None:
    dashboard = deepcopy(DASHBOARDS["fewstep-serving"])
    part: Any = dashboard
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    assert any(told in problem for problem in problems(dashboard)), problems(dashboard)
