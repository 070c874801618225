"""Grafana's files: what the generator writes, in the form that Grafana reads, over provisioned sources."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from .files import DEPLOY, GRAFANA, dashboards, load_script, read_yaml, rules

SCRIPT = load_script(GRAFANA / "dashboards.py")
DASHBOARDS = dashboards()
UNITS = {"s", "h", "reqps", "percentunit", "short", "bytes"}
KINDS = {"timeseries", "stat"}

SOURCE = {
    "type": "object",
    "required": ["type", "uid"],
    "properties": {"type": {"const": "prometheus"}, "uid": {"type": "string"}},
}
TARGET = {
    "type": "object",
    "required": ["refId", "expr", "datasource", "legendFormat"],
    "properties": {
        "refId": {"type": "string", "pattern": "^[A-Z]$"},
        "expr": {"type": "string", "minLength": 1},
        "legendFormat": {"type": "string", "minLength": 1},
        "datasource": SOURCE,
    },
    "additionalProperties": False,
}
PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "datasource", "gridPos", "targets", "fieldConfig"],
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": sorted(KINDS)},
        "title": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
        "datasource": SOURCE,
        "gridPos": {
            "type": "object",
            "required": ["x", "y", "w", "h"],
            "properties": {
                "x": {"type": "integer", "minimum": 0, "maximum": 23},
                "y": {"type": "integer", "minimum": 0},
                "w": {"type": "integer", "minimum": 1, "maximum": 24},
                "h": {"type": "integer", "minimum": 1},
            },
            "additionalProperties": False,
        },
        "fieldConfig": {
            "type": "object",
            "required": ["defaults", "overrides"],
            "properties": {
                "defaults": {
                    "type": "object",
                    "required": ["unit"],
                    "properties": {"unit": {"enum": sorted(UNITS)}, "min": {"type": "number"}},
                },
                "overrides": {"type": "array"},
            },
        },
        "targets": {"type": "array", "minItems": 1, "items": TARGET},
    },
    "additionalProperties": False,
}
VARIABLE = {
    "type": "object",
    "required": ["name", "type", "datasource", "query"],
    "properties": {"name": {"type": "string", "pattern": "^[a-z_]+$"}, "type": {"const": "query"}},
}
DASHBOARD = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time"],
    "properties": {
        "uid": {"type": "string", "pattern": "^[a-z-]{1,40}$"},
        "title": {"type": "string", "minLength": 1},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {"type": "array", "minItems": 1, "items": PANEL},
        "templating": {
            "type": "object",
            "required": ["list"],
            "properties": {"list": {"type": "array", "items": VARIABLE}},
        },
    },
}
"""What these dashboards use of Grafana's model, and no more; against all of it: test_grafana_model."""

each_dashboard = pytest.mark.parametrize("name", sorted(DASHBOARDS))


def test_there_is_one_for_each_subject() -> None:
    assert set(DASHBOARDS) == {"fewstep-serving", "fewstep-jobs", "fewstep-fleet"}
    assert {dashboard.uid for dashboard in SCRIPT.DASHBOARDS} == set(DASHBOARDS)


@pytest.mark.parametrize("dashboard", SCRIPT.DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_the_files_are_what_the_script_writes(dashboard: Any) -> None:
    written = (GRAFANA / "dashboards" / f"{dashboard.uid}.json").read_text()
    assert written == SCRIPT.written(dashboard), "run deploy/grafana/dashboards.py"


@each_dashboard
def test_a_dashboard_has_the_form_that_grafana_reads(name: str) -> None:
    jsonschema.validate(DASHBOARDS[name], DASHBOARD)
    assert DASHBOARDS[name]["uid"] == name


@each_dashboard
def test_panels_lie_beside_each_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@each_dashboard
def test_titles_and_letters_are_each_given_once(name: str) -> None:
    panels = DASHBOARDS[name]["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


@each_dashboard
def test_variables_that_queries_use_are_offered(name: str) -> None:
    offered = {variable["name"] for variable in DASHBOARDS[name]["templating"]["list"]}
    text = str(DASHBOARDS[name]["panels"])
    for variable in offered:
        assert f"${variable}" in text, "offered and not used"
    used = {word.split('"')[0] for word in text.replace("$__rate_interval", "").split('"$')[1:]}
    assert used <= offered


def test_serving_shows_each_subject() -> None:
    text = str(DASHBOARDS["fewstep-serving"])
    for subject in ("stage_duration", "batch_size", "queue_depth", "outcome", "steps", "cache_hits"):
        assert subject in text


def test_jobs_shows_each_subject() -> None:
    text = str(DASHBOARDS["fewstep-jobs"])
    for subject in ("loss", "quality", "images_per_second", "progress_ratio", "remaining_seconds", "status"):
        assert subject in text
    (losses,) = [panel for panel in DASHBOARDS["fewstep-jobs"]["panels"] if panel["title"] == "Losses"]
    assert "min" not in losses["fieldConfig"]["defaults"], "they go below zero"


def test_the_source_is_the_prometheus_of_compose() -> None:
    (source,) = read_yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    services = read_yaml(DEPLOY / "compose.yaml")["services"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert any(line.endswith(f":{port}") for line in services[host]["ports"])
    for dashboard in DASHBOARDS.values():
        for panel in dashboard["panels"]:
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {source["uid"]}


def test_the_dashboards_are_where_grafana_looks() -> None:
    (provider,) = read_yaml(GRAFANA / "provisioning" / "dashboards" / "fewstep.yml")["providers"]
    mounts = read_yaml(DEPLOY / "compose.yaml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_recorded_names_in_panels_are_recorded() -> None:
    from .files import metrics_in, queries

    named = {metric for _, query in queries() for metric in metrics_in(query) if ":" in metric}
    assert named
    assert named <= set(rules("record"))


def test_quantiles_come_from_buckets_summed_over_servers() -> None:
    made = SCRIPT.quantiles("x_seconds", 'a="b"', by="model")
    assert made["p95 {{model}}"] == (
        'histogram_quantile(0.95, sum by (le, model) (rate(x_seconds_bucket{a="b"}[$__rate_interval])))'
    )
    assert list(SCRIPT.quantiles("x_seconds")) == ["p50", "p95", "p99"]
