"""Prometheus' rules: checked by promtool, each alert tried, each with a section in the runbook."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from .files import PROMETHEUS, ROOT, metrics_in, needs_prometheus, read_yaml, rules, run

RUNBOOK = ROOT / "docs" / "runbook.md"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
ALERTS, RECORDS = rules("alert"), rules("record")


@needs_prometheus
def test_promtool_accepts_configuration_and_rules() -> None:
    done = run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    assert done.returncode == 0, done.stderr
    counted = re.findall(r"(\d+) rules found", done.stdout)
    assert sum(map(int, counted)) == len(ALERTS) + len(RECORDS)


@needs_prometheus
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_only_then(file: Path) -> None:
    done = run("promtool", "test", "rules", file.name, cwd=file.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_a_changed_threshold_is_noticed(tmp_path: Path) -> None:
    """The unit tests can fail."""
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    alerts = tmp_path / "prometheus" / "rules" / "alerts.yml"
    alerts.write_text(alerts.read_text().replace("ratio_rate5m > 0.05", "ratio_rate5m > 0.5"))
    done = run("promtool", "test", "rules", "serving.yml", cwd=tmp_path / "prometheus" / "tests")
    assert done.returncode != 0
    assert "FewstepErrors" in done.stdout + done.stderr


def test_every_alert_is_tried_silent_and_firing() -> None:
    tried: dict[str, list[bool]] = {}
    for file in TESTS:
        for case in read_yaml(file)["tests"]:
            for check in case["alert_rule_test"]:
                tried.setdefault(check["alertname"], []).append(bool(check["exp_alerts"]))
    assert set(tried) == set(ALERTS)
    assert all(set(outcomes) == {True, False} for outcomes in tried.values())


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_says_what_is_wrong_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"]
    page, _, section = alert["annotations"]["runbook_url"].partition("#")
    assert (page, section) == ("docs/runbook.md", name.lower())
    assert f"\n## {name}\n" in RUNBOOK.read_text()


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    assert set(re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE)) == set(ALERTS)


@pytest.mark.parametrize("name", sorted(ALERTS | RECORDS))
def test_a_rule_uses_only_recorded_names_that_are_recorded(name: str) -> None:
    named = metrics_in((ALERTS | RECORDS)[name]["expr"])
    assert {metric for metric in named if ":" in metric} <= set(RECORDS)
    assert named or name == "fewstep:slo_latency_seconds"


def test_metrics_are_found_in_expressions() -> None:
    query = 'sum by (up, le) (rate(fewstep_a_total{x="fewstep_b"}[5m])) / on (instance) fewstep:c:d > up'
    assert metrics_in(query) == {"fewstep_a_total", "fewstep:c:d", "up"}
