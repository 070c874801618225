"""One of the two packages, imported, with its version and its log."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import Any, cast

from ..errors import EngineError
from .api import Module, RtxModule

log = logging.getLogger(__name__)

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend -> the module that it takes."""


@dataclass(frozen=True)
class Kit:
    """A TensorRT package.

    Attributes:
        backend: `tensorrt` or `tensorrt-rtx`.
        trt: The module.
        logger: Given to everything that the module makes; `errors` holds what it was told last.
    """

    backend: str
    trt: Module
    logger: Any

    @property
    def version(self) -> str:
        return self.trt.__version__

    @property
    def rtx(self) -> RtxModule | None:
        """The module with what TensorRT-RTX alone has; None for TensorRT."""
        return cast(RtxModule, self.trt) if hasattr(self.trt, "ComputeCapability") else None

    def failure(self) -> str:
        """Why the library's last call failed, in its own words: it returns None or False and logs."""
        said = " ".join(self.logger.errors[-1].split()) if self.logger.errors else "no reason given"
        self.logger.errors.clear()
        return said[:500]


def load_kit(backend: str) -> Kit:
    """Imports the package of a backend.

    Raises:
        EngineError: there is no such backend, or its package is missing or broken.
    """
    if backend not in MODULES:
        raise EngineError(f"backend {backend!r}: expected {' or '.join(MODULES)}")
    name = MODULES[backend]
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a missing driver or library shows as any of several errors
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise EngineError(f"{name} is not installed: pip install 'fewstep[{backend}]'") from error
        raise EngineError(f"{name} is installed, but cannot be imported: {error}") from error
    return new_kit(backend, module)


def new_kit(backend: str, module: Any) -> Kit:
    return Kit(backend, cast(Module, module), _new_log(module))


def _new_log(module: Any) -> Any:
    """The base class is the module's own, so the class cannot be written down before there is one."""

    def start(self: Any) -> None:
        module.ILogger.__init__(self)
        self.errors = []

    def tell(self: Any, severity: Any, message: str) -> None:
        if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
            self.errors.append(message)
        log.log(_level(module, severity), "%s: %s", module.__name__, message)

    return type("Log", (module.ILogger,), {"__init__": start, "log": tell})()


def _level(module: Any, severity: Any) -> int:
    known = {module.ILogger.INTERNAL_ERROR: logging.ERROR, module.ILogger.ERROR: logging.ERROR}
    return known.get(severity, logging.DEBUG)
