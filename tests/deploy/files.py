"""The deployment files, as the tests read them."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
GRAFANA = DEPLOY / "grafana"

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="Prometheus is not installed (scripts/system-packages)",
)


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def load_script(path: Path) -> ModuleType:
    """A script of deploy/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    import sys

    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def run(*command: str | Path, **keywords: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **keywords)


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Name -> rule; `kind` is `alert` or `record`."""
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    groups = [group for file in files for group in read_yaml(file)["groups"]]
    found = [rule for group in groups for rule in group["rules"] if kind in rule]
    assert len({rule[kind] for rule in found}) == len(found), "a name is given twice"
    return {rule[kind]: rule for rule in found}


def dashboards() -> dict[str, dict[str, Any]]:
    files = sorted((GRAFANA / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def queries() -> list[tuple[str, str]]:
    """Panel, PromQL: of every panel of every dashboard."""
    return [
        (f"{name}: {panel['title']}: {target['legendFormat']}", target["expr"])
        for name, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def metrics_in(query: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    plain = re.sub(r"\{[^}]*\}", "", query)
    plain = re.sub(r"\b(by|on|group_left|group_right|without|ignoring)\s*\([^)]*\)", "", plain)
    return set(re.findall(r"\b(?:fewstep[:_]|process_|prometheus_|DCGM_|ray_)[\w:]+|\bup\b", plain))
