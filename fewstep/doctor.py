"""`fewstep doctor`: what this machine can do, what is missing, and how to get it. Needs no torch."""

from __future__ import annotations

import http.client
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.settings import Settings, reachable, read_settings

GIB = 2**30
LEAST_DISK = GIB  # a served model and its pictures
LEAST_PYTHON = (3, 11)
GET = {
    "distill": "pip install 'fewstep[distill]'",
    "tensorrt": "pip install 'fewstep[tensorrt]'",
    "ray": "pip install 'fewstep[ray]'",
    "otel": "pip install 'fewstep[otel]'",
}
SERVING = (
    "fastapi",
    "numpy",
    "onnxruntime",
    "pillow",
    "prometheus-client",
    "pydantic",
    "tokenizers",
    "uvicorn",
)
OPTIONAL = {
    "torch": "distill", "diffusers": "distill", "transformers": "distill", "onnx": "distill",
    "onnxscript": "distill", "ray": "ray", "opentelemetry-sdk": "otel",
}  # fmt: skip
TENSORRT = {
    "tensorrt": GET["tensorrt"],
    "tensorrt_rtx": "pip install 'fewstep[tensorrt-rtx]' (GeForce RTX and RTX PRO GPUs)",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: What.
        found: What was found, in words; empty if it is missing.
        needed: Whether serving cannot do without it.
        advice: How to get what is missing.
        details: The same for programs.
    """

    name: str
    found: str
    needed: bool = False
    advice: str = ""
    details: Any = None

    @property
    def ok(self) -> bool:
        return bool(self.found)


def examine() -> list[Finding]:
    """Looks at everything; changes nothing."""
    settings = read_settings()
    return [
        _python(),
        *_packages(),
        _cpus(),
        _memory(),
        _gpus(),
        _onnx_runtime(),
        *_tensorrt(),
        *_backends(settings),
        _disk(settings.data_dir),
        _port(settings),
    ]


def can_serve(findings: list[Finding]) -> bool:
    return all(finding.ok for finding in findings if finding.needed)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    return {
        "can_serve": can_serve(findings),
        "findings": [{**asdict(finding), "ok": finding.ok} for finding in findings],
    }


def as_text(findings: list[Finding]) -> str:
    """A line for each finding, what is missing with its advice, and the verdict."""
    width = max(len(finding.name) for finding in findings)
    return "\n".join([*(_line(finding, width) for finding in findings), _verdict(findings)])


def _line(finding: Finding, width: int) -> str:
    sign = "ok" if finding.ok else "MISSING" if finding.needed else "-"
    said = "; ".join(words for words in (finding.found or "not here", finding.advice) if words)
    return f"{sign:<8}{finding.name:<{width}}  {said}"


def _verdict(findings: list[Finding]) -> str:
    lacking = ", ".join(finding.name for finding in findings if finding.needed and not finding.ok)
    return f"This machine cannot serve yet: {lacking}" if lacking else "This machine can serve."


def _python() -> Finding:
    version = platform.python_version()
    if tuple(map(int, version.split(".")[:2])) < LEAST_PYTHON:
        return Finding("Python", "", True, f"{version} is too old: install Python 3.11 or newer", version)
    return Finding("Python", version, True, details=version)


def _packages() -> Iterator[Finding]:
    for name in SERVING:
        yield _package(name, True, "pip install fewstep")
    for name, extra in OPTIONAL.items():
        yield _package(name, False, GET[extra])


def _package(name: str, needed: bool, get: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "", needed, get)
    return Finding(name, version, needed, details=version)


def _cpus() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("CPUs", f"{usable} usable, {platform.machine()}", details=usable)


def _memory() -> Finding:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Finding("memory", "", advice="this system does not say how much it has")
    return Finding("memory", f"{size / GIB:.1f} GiB", details=size)


def _gpus() -> Finding:
    gpus = _gpus_of_torch() if importlib.util.find_spec("torch") else []
    gpus = gpus or _gpus_of_the_driver()
    if not gpus:
        return Finding(
            "GPUs", "", advice="none needed: serving runs on the CPU; distilling large teachers needs one"
        )
    words = ", ".join(f"{gpu['name']} {gpu['memory'] / GIB:.0f} GiB" for gpu in gpus)
    return Finding("GPUs", words, details=gpus)


def _gpus_of_torch() -> list[dict[str, Any]]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(number) for number in range(count)]
    return [{"name": each.name, "memory": each.total_memory} for each in found]


def _gpus_of_the_driver() -> list[dict[str, Any]]:
    """Of `nvidia-smi`, for a machine without torch or with a build of it for CPUs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line]
    return [
        {"name": name.strip(), "memory": int(mib) * 2**20} for name, mib in rows if mib.strip().isdecimal()
    ]


def _onnx_runtime() -> Finding:
    try:
        import onnxruntime
    except ImportError as error:
        return Finding("ONNX Runtime providers", "", True, f"{error}: pip install fewstep")
    providers = onnxruntime.get_available_providers()
    return Finding("ONNX Runtime providers", ", ".join(providers), True, details=providers)


def _tensorrt() -> Iterator[Finding]:
    for module, get in TENSORRT.items():
        try:
            version = str(getattr(importlib.import_module(module), "__version__", "yes"))
        except Exception as error:  # a missing driver or library shows as any of several errors
            missing = isinstance(error, ModuleNotFoundError) and error.name == module
            reason = get if missing else f"installed, but cannot be imported: {error}"
            yield Finding(module, "", advice=reason)
        else:
            yield Finding(module, version, details=version)


def _backends(settings: Settings) -> Iterator[Finding]:
    """What each served model would run on, and what keeps it from a faster one."""
    try:
        from engines.bundle import Bundle
        from engines.errors import EngineError
        from engines.runtime import choices
        from engines.store import find_bundle
    except ImportError:
        return  # which package is missing has been said
    for name, place in settings.models.items():
        what = f"backend of {name}"
        try:
            problems = choices(Bundle.load(find_bundle(place, settings.store)))
        except EngineError as error:
            yield Finding(what, "", True, str(error))
            continue
        chosen = next((backend for backend, problem in problems.items() if not problem), "")
        said = "; ".join(f"not {backend}: {problem}" for backend, problem in problems.items() if problem)
        yield Finding(what, chosen, True, said, details=problems)


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    details = {"folder": str(folder), "free": free}
    if not os.access(there, os.W_OK):
        advice = f"{there} cannot be written to; choose another with FEWSTEP_DATA_DIR"
        return Finding("data folder", "", True, advice, details)
    if free < LEAST_DISK:
        advice = f"{free / GIB:.2f} GiB free at {folder}; make room for 1 GiB or set FEWSTEP_DATA_DIR"
        return Finding("data folder", "", True, advice, details)
    return Finding("data folder", f"{folder}, {free / GIB:.1f} GiB free", True, details=details)


def _serves(settings: Settings) -> bool:
    """Whether a server of fewstep is at the settings' port already, as when this runs in its container."""
    connection = http.client.HTTPConnection(reachable(settings.host), settings.port, timeout=2)
    try:
        connection.request("GET", "/health/ready")
        return b'"models"' in connection.getresponse().read(1 << 16)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _port(settings: Settings) -> Finding:
    place = f"{settings.host}:{settings.port}"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family[0], family[1]) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(family[4])
    except OSError as error:
        if _serves(settings):
            return Finding("port", f"{place}: a server of fewstep answers there", True, details=place)
        advice = f"{place}: {error.strerror or error}; choose another with --port or FEWSTEP_PORT"
        return Finding("port", "", True, advice, place)
    return Finding("port", f"{place} is free", True, details=place)
