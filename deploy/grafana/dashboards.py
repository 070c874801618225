"""The dashboards, as tables of panels: title, unit, and a query for each legend. Run it to write dashboards/*.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 8, 8
"""Of a panel, on Grafana's grid of 24 columns."""


@dataclass(frozen=True)
class Panel:
    """One graph.

    Attributes:
        unit: In Grafana's terms: s, reqps, percentunit, short, bytes.
        queries: Legend -> PromQL; `{{label}}` in a legend is that label.
        kind: Of Grafana's panels: timeseries, stat.
        least: Where the axis begins; None leaves it to the values.
    """

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    description: str = ""
    least: float | None = 0


@dataclass(frozen=True)
class Dashboard:
    """One page.

    Attributes:
        variables: Name -> the PromQL metric whose label of that name it offers.
    """

    uid: str
    title: str
    panels: tuple[Panel, ...]
    variables: dict[str, str] = field(default_factory=dict)


def quantiles(metric: str, where: str = "", by: str = "") -> dict[str, str]:
    """Legend -> query of the median, the 95th and the 99th percentile of a histogram."""
    labels = ", ".join(["le"] + ([by] if by else []))
    rate = f"sum by ({labels}) (rate({metric}_bucket{{{where}}}[$__rate_interval]))"
    suffix = f" {{{{{by}}}}}" if by else ""
    return {f"p{q}{suffix}": f"histogram_quantile({q / 100:g}, {rate})" for q in (50, 95, 99)}


HERE = 'instance=~"$instance"'
MODEL = f'{HERE}, model=~"$model"'
RATE = "[$__rate_interval]"

SERVING = Dashboard(
    "fewstep-serving",
    "fewstep: serving",
    (
        Panel("Ready", "short", {"{{instance}}": f"fewstep_ready{{{HERE}}}"}, "stat"),
        Panel(
            "Images a second", "short", {"all": f"sum(rate(fewstep_images_total{{{MODEL}}}{RATE}))"}, "stat"
        ),
        Panel("Requests that failed", "percentunit", {"errors": "fewstep:errors:ratio_rate5m"}, "stat"),
        Panel(
            "Requests by outcome",
            "reqps",
            {"{{outcome}}": f"sum by (outcome) (rate(fewstep_requests_total{{{HERE}}}{RATE}))"},
        ),
        Panel("Latency of requests", "s", quantiles("fewstep_request_duration_seconds", HERE)),
        Panel("Time not worked on", "s", quantiles("fewstep_queue_wait_seconds", HERE)),
        Panel(
            "Time of a batch by phase, 95th percentile",
            "s",
            {
                "{{stage}}": "histogram_quantile(0.95, sum by (stage, le)"
                f" (rate(fewstep_stage_duration_seconds_bucket{{{HERE}}}{RATE})))"
            },
        ),
        Panel(
            "Busy share of each phase",
            "percentunit",
            {"{{stage}}": f"sum by (stage) (rate(fewstep_stage_duration_seconds_sum{{{HERE}}}{RATE}))"},
            description="The phase that is at 1 first is the one that limits the server.",
        ),
        Panel(
            "Images in a batch, mean",
            "short",
            {
                "{{stage}}": f"sum by (stage) (rate(fewstep_batch_size_sum{{{HERE}}}{RATE}))"
                f" / (sum by (stage) (rate(fewstep_batch_size_count{{{HERE}}}{RATE})) > 0)"
            },
        ),
        Panel(
            "Places that held a repeat",
            "percentunit",
            {"{{stage}}": "fewstep:padding:ratio_rate5m"},
            description="Batch sizes are those of the bundle; what nothing fills is computed all the same.",
        ),
        Panel("Images waiting", "short", {"{{model}} {{stage}}": f"fewstep_queue_depth{{{MODEL}}}"}),
        Panel(
            "Images inside, and the most that may be",
            "short",
            {
                "{{instance}} {{model}}": f"fewstep_inflight_images{{{MODEL}}}",
                "queue_limit": f"max(fewstep_queue_limit_images{{{HERE}}})",
            },
        ),
        Panel(
            "Images by step count",
            "short",
            {
                "{{model}}, {{steps}} steps": f"sum by (model, steps) (rate(fewstep_images_total{{{MODEL}}}{RATE}))"
            },
        ),
        Panel(
            "Images that got fewer steps, or were given up",
            "short",
            {
                "fewer steps {{model}}": f"sum by (model) (rate(fewstep_reduced_images_total{{{MODEL}}}{RATE}))",
                "client left {{model}}": f"sum by (model) (rate(fewstep_cancelled_images_total{{{MODEL}}}{RATE}))",
            },
        ),
        Panel(
            "Found in caches",
            "percentunit",
            {
                name: f"sum(rate(fewstep_{cache}_cache_hits_total{{{HERE}}}{RATE}))"
                f" / (sum(rate(fewstep_{cache}_cache_hits_total{{{HERE}}}{RATE}))"
                f" + sum(rate(fewstep_{cache}_cache_misses_total{{{HERE}}}{RATE})) > 0)"
                for name, cache in (("prompts", "embedding"), ("pictures", "result"))
            },
        ),
        Panel(
            "Time taken over time predicted",
            "short",
            quantiles("fewstep_prediction_ratio", MODEL),
            description="Above 1, images come later than admission thought.",
        ),
        Panel(
            "Engines started again",
            "short",
            {"{{instance}} {{model}}": f"increase(fewstep_engine_restarts_total{{{MODEL}}}[15m])"},
        ),
    ),
    {"instance": "fewstep_ready", "model": "fewstep_model_ready"},
)

FLEET = Dashboard(
    "fewstep-fleet",
    "fewstep: fleet",
    (
        Panel("Servers up", "short", {"up": 'sum(up{job="fewstep"})'}, "stat"),
        Panel("Servers ready", "short", {"ready": "sum(fewstep_ready)"}, "stat"),
        Panel(
            "Images a second", "short", {"all": "sum(rate(fewstep_images_total[$__rate_interval]))"}, "stat"
        ),
        Panel("Models that draw", "short", {"{{instance}} {{model}}": "fewstep_model_ready"}),
        Panel(
            "Versions",
            "short",
            {"{{version}}, Python {{python}}": "count by (version, python) (fewstep_build_info)"},
        ),
        Panel(
            "Hours since the start",
            "h",
            {"{{instance}}": '(time() - process_start_time_seconds{job="fewstep"}) / 3600'},
        ),
        Panel(
            "Processor cores in use",
            "short",
            {"{{instance}}": 'rate(process_cpu_seconds_total{job="fewstep"}[$__rate_interval])'},
        ),
        Panel("Memory", "bytes", {"{{instance}}": 'process_resident_memory_bytes{job="fewstep"}'}),
        Panel("File descriptors", "short", {"{{instance}}": 'process_open_fds{job="fewstep"}'}),
        Panel("Use of the queue", "percentunit", {"{{instance}} {{model}}": "fewstep:queue_use:ratio"}),
        Panel("Requests refused a second", "reqps", {"refused": "fewstep:refused:rate5m"}),
        Panel(
            "Alerts that fire",
            "short",
            {"{{alertname}}": 'count by (alertname) (ALERTS{alertstate="firing"})'},
        ),
    ),
)

JOB = 'distillation_job=~"$distillation_job"'


def of_job(metric: str, by: str = "") -> dict[str, str]:
    """Legend -> query; every server tells the same, so that one of them is enough."""
    labels = ", ".join(["distillation_job"] + ([by] if by else []))
    legend = "{{distillation_job}}" + (f" {{{{{by}}}}}" if by else "")
    return {legend: f"max by ({labels}) ({metric}{{{JOB}}})"}


JOBS = Dashboard(
    "fewstep-jobs",
    "fewstep: jobs",
    (
        Panel("Running", "short", {"running": 'max(fewstep_jobs{status="running"})'}, "stat"),
        Panel("Waiting", "short", {"queued": 'max(fewstep_jobs{status="queued"})'}, "stat"),
        Panel("Failed", "short", {"failed": 'max(fewstep_jobs{status="failed"})'}, "stat"),
        Panel("Progress", "percentunit", of_job("fewstep_job_progress_ratio")),
        Panel("Images a second", "short", of_job("fewstep_job_images_per_second")),
        Panel("Time left", "s", of_job("fewstep_job_remaining_seconds")),
        Panel(
            "Losses",
            "short",
            of_job("fewstep_job_loss", "loss"),
            description="The loss of SiD swings around zero and says nothing about progress.",
            least=None,
        ),
        Panel("Quality", "short", of_job("fewstep_job_quality", "measure")),
        Panel("Jobs by status", "short", {"{{status}}": "max by (status) (fewstep_jobs)"}),
        Panel("Time from start to end", "s", quantiles("fewstep_job_duration_seconds")),
    ),
    {"distillation_job": "fewstep_job_progress_ratio"},
)

DASHBOARDS = (SERVING, JOBS, FLEET)


def as_json(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["fewstep"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_variable(*item) for item in dashboard.variables.items()]},
        "panels": [_panel(number, panel) for number, panel in enumerate(dashboard.panels)],
    }


def _variable(name: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, 24 // WIDTH)
    least = {} if panel.least is None else {"min": panel.least}
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit} | least, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for n, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def written(dashboard: Dashboard) -> str:
    return json.dumps(as_json(dashboard), indent=2) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each.uid}.json").write_text(written(each))
