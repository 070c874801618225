"""Writes .env.example: what compose.yaml takes from its environment, then every setting of the server."""

from __future__ import annotations

import textwrap
from pathlib import Path

from service.settings import PREFIX, Settings, as_variable

FILE = Path(__file__).parent / ".env.example"
HEADER = """\
# Copy to .env and uncomment what shall differ; each line shows the default.
# A server with a variable that is no setting, or with a bad value, ends at once and says which.
# FEWSTEP_<NAME>_FILE=/run/secrets/<name> reads a value from a file instead.
"""
COMPOSE = {
    "COMPOSE_PROFILES": (
        "",
        "gpu, jobs, jobs-cpu, ray, comma-separated, when compose is called without up.sh",
    ),
    "BIND": (
        "127.0.0.1",
        "Address on this machine that ports are published on; put a TLS proxy before any other",
    ),
    "API_PORT": ("8000", "Port of the server on the CPU"),
    "API_GPU_PORT": ("8001", "Port of the server on the GPU"),
    "RAY_PORT": ("8002", "Port of the server on Ray"),
    "PROMETHEUS_PORT": ("9090", "Port of Prometheus"),
    "GRAFANA_PORT": (
        "3000",
        "Port of Grafana; its user is admin, its password in secrets/grafana_admin_password",
    ),
    "API_CPUS": ("2", "Most cores of the server on the CPU"),
    "API_MEMORY": (
        "2g",
        "Most memory of the server on the CPU; over it the container is killed and started again",
    ),
    "API_GPU_CPUS": ("2", "Most cores of the server on the GPU"),
    "API_GPU_MEMORY": ("16g", "Most memory, aside from the GPU's, of the server on the GPU"),
    "DATABASE_URL_FILE": (
        "",
        "/run/secrets/database_url keeps jobs in PostgreSQL, as up.sh jobs does; else in SQLite in volume data",
    ),
    "WORKER_CPUS": ("2", "Most cores of the worker"),
    "WORKER_MEMORY": ("32g", "Most memory, aside from the GPU's, of the worker"),
    "WORKER_CPU_MEMORY": ("8g", "Most memory of the worker that has no GPU"),
    "RAY_WORKERS": ("1", "Nodes of the Ray cluster beside its head"),
    "RAY_CPUS": ("2", "Most cores of a node of the Ray cluster, which are what Ray hands out there"),
    "RAY_MEMORY": ("4g", "Most memory of a node of the Ray cluster"),
    "POSTGRES_MEMORY": ("512m", "Most memory of PostgreSQL"),
    "PROMETHEUS_MEMORY": ("1g", "Most memory of Prometheus"),
    "GRAFANA_MEMORY": ("512m", "Most memory of Grafana"),
    "STOP_GRACE_PERIOD": (
        "45s",
        "How long a stopping server may take; more than FEWSTEP_DRAIN_SECONDS and 5 s",
    ),
    "WORKER_STOP_GRACE_PERIOD": ("150s", "The same of the worker; more than FEWSTEP_JOBS_STOP_SECONDS"),
    "PROMETHEUS_RETENTION": ("30d", "How long metrics are kept"),
    "GPU_BACKEND": ("tensorrt", "FEWSTEP_BACKEND of the server on the GPU"),
    "GPU_MODELS": (
        "",
        "FEWSTEP_MODELS of the server on the GPU: bundles with plans for it, in its volume data-gpu",
    ),
    "API_IMAGE": ("fewstep/serve", "Image of the server on the CPU"),
    "API_GPU_IMAGE": ("fewstep/serve-gpu", "Image of the server on the GPU"),
    "WORKER_IMAGE": ("fewstep/distill", "Image of the worker"),
    "RAY_IMAGE": ("fewstep/serve-ray", "Image of the nodes of the Ray cluster"),
    "POSTGRES_IMAGE": (
        "postgres:17",
        "Image of PostgreSQL; deploy/postgres makes one from Debian's packages",
    ),
    "PROMETHEUS_IMAGE": ("prom/prometheus:v2.53.3", "Image of Prometheus"),
    "GRAFANA_IMAGE": ("grafana/grafana:11.6.0", "Image of Grafana"),
    "PYTHON_IMAGE": ("python:3.11-slim", "Base of the images that are built; with @sha256:... it is pinned"),
    "PIP_INDEX_URL": ("", "Address of a package mirror; without a password, which builds would show"),
    "PIP_EXTRA_INDEX_URL": ("", "A further one"),
    "PIP_TRUSTED_HOST": ("", "Its host, if it has no certificate that is known"),
    "PIP_FIND_LINKS": ("", "A page or folder of packages"),
    "GPU_EXTRA": (
        "tensorrt",
        "In the image for GPUs; tensorrt-rtx for GeForce RTX and RTX PRO, then GPU_BACKEND, too",
    ),
    "VERSION": ("0.1.0", "Label of the images that are built"),
    "REVISION": ("unknown", "Label of the images that are built: the commit"),
    "CREATED": ("unknown", "Label of the images that are built: the time"),
}
"""Variable -> default, meaning."""


def text() -> str:
    parts = [HEADER, "# ---- compose.yaml\n"]
    parts += [_entry(name, default, meaning) for name, (default, meaning) in COMPOSE.items()]
    parts.append("# ---- the server; the same as the flags of `fewstep serve --help`\n")
    parts += [
        _entry(PREFIX + name.upper(), as_variable(field.default), str(field.description))
        for name, field in Settings.model_fields.items()
        if name not in ("host", "port", "data_dir")  # the image's and compose.yaml's
    ]
    return "\n".join(parts)


def _entry(name: str, default: str, meaning: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(meaning, 108)) + f"#{name}={default}\n"


if __name__ == "__main__":
    FILE.write_text(text())
