"""What the real Python bindings of TensorRT have of the names that are used here.

TensorRT itself cannot be installed where this project is tested; its bindings can, and load once tiny
libraries stand in for the ones that they link to. Every class, enumeration and signature is then the
vendor's own, and nothing can be run by mistake: the stand-ins make nothing.

    python -m tests.engines.bindings    # downloads the bindings, writes tensorrt_api.json
"""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from engines.tensorrt import api

TABLE = Path(__file__).with_name("tensorrt_api.json")
VERSIONS = ("10.16.1.11", "11.4.0.106")
PACKAGE = "tensorrt-cu13-bindings"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "getBuilderPluginRegistry",
    "initLibNvInferPlugins",
)
NAMES = {
    "IBuilder": "Builder",
    "IParser": "OnnxParser",
    "IParserError": "ParserError",
    "IRuntime": "Runtime",
    "IRefitter": "Refitter",
    "PortableConfig": "IBuilderConfig",
    "CachingConfig": "IRuntimeConfig",
}
"""Where a protocol is not named as the class that it describes."""
MODULES = ("Module", "RtxModule")
RTX_ALONE = {
    "PortableConfig",
    "CachingConfig",
    "IRuntimeCache",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "RtxModule",
}

Description = dict[str, dict[str, list[str]]]
"""Class -> member -> signatures; an attribute has none."""


def protocols() -> dict[str, type]:
    """The classes of `api.py`, by name."""
    return {
        name: value
        for name, value in vars(api).items()
        if isinstance(value, type) and value.__module__ == api.__name__
    }


def members(protocol: type) -> list[str]:
    """What a protocol itself asks for, without what it inherits."""
    declared = {*vars(protocol), *getattr(protocol, "__annotations__", {})}
    return sorted(name for name in declared if not name.startswith("_"))


def describe(module: Any) -> Description:
    """What a module has of all that `api.py` names; what is missing is left out."""
    found: Description = {"module": {}}
    for name, protocol in protocols().items():
        if name in MODULES:
            for member in filter(lambda one: hasattr(module, one), members(protocol)):
                init = getattr(getattr(module, member), "__init__", None)
                found["module"][member] = signatures(init)
            continue
        real = getattr(module, NAMES.get(name, name), None)
        if real is not None:
            there = found.setdefault(NAMES.get(name, name), {})
            there |= {one: signatures(getattr(real, one)) for one in members(protocol) if hasattr(real, one)}
    return found


def signatures(member: Any) -> list[str]:
    """The lines of a binding's docstring that say how it is called, without the names of modules."""
    lines = [line.strip() for line in (getattr(member, "__doc__", None) or "").splitlines()]
    calls = [re.sub(r"^\d+\. ", "", line) for line in lines if re.match(r"(\d+\. )?\w+\(self: ", line)]
    return [re.sub(r"\b[\w.]*tensorrt\w*\.", "", call) for call in calls]


def fetch(version: str, folder: Path) -> None:
    """Downloads the bindings of a version.

    Raises:
        CalledProcessError: the package index has them not, or there is none.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(folder), f"{PACKAGE}=={version}"], check=True)


def describe_wheel(version: str, folder: Path) -> Description:
    """Loads the bindings that are in `folder`, in a process of their own."""
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    _stand_ins(folder, version.split(".")[0])
    code = (
        "import json, tensorrt_bindings, tests.engines.bindings as here;"
        "print(json.dumps(here.describe(tensorrt_bindings)))"
    )
    paths = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    description: Description = json.loads(done.stdout)
    return description


def _stand_ins(folder: Path, major: str) -> None:
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)


def main() -> None:
    table: dict[str, Any] = {"made": datetime.date.today().isoformat(), "package": PACKAGE, "versions": {}}
    for version in VERSIONS:
        with tempfile.TemporaryDirectory() as folder:
            fetch(version, Path(folder))
            table["versions"][version] = describe_wheel(version, Path(folder))
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
