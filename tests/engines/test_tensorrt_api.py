"""Every name and signature of TensorRT that is used exists: in 10.16, in 11.4 and in TensorRT-RTX."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.tensorrt import api, cuda

from . import fake_gpu
from .bindings import (
    MODULES,
    NAMES,
    PACKAGE,
    RTX_ALONE,
    TABLE,
    VERSIONS,
    Description,
    describe,
    describe_wheel,
    fetch,
    members,
    protocols,
)

RECORDED = json.loads(TABLE.read_text())
SOURCES = sorted(Path(api.__file__).parent.glob("*.py"))


def rtx() -> Description:
    return describe(pytest.importorskip("tensorrt_rtx", reason="pip install 'fewstep[tensorrt-rtx]'"))


def real(version: str) -> Description:
    return rtx() if version == "rtx" else RECORDED["versions"][version]


def expected(version: str) -> list[tuple[str, str]]:
    return [
        (name, member)
        for name, protocol in protocols().items()
        if version == "rtx" or name not in RTX_ALONE
        for member in members(protocol)
    ]


def problems(description: Description, wanted: list[tuple[str, str]]) -> list[str]:
    """What is wanted and not there, or is called otherwise."""
    found = []
    for name, member in wanted:
        there = description.get("module" if name in MODULES else NAMES.get(name, name), {})
        if member not in there:
            found.append(f"{name}.{member} is missing")
        elif name in MODULES:
            found += made_otherwise(member, there[member], getattr(api, name))
        elif callable(declared := getattr(protocols()[name], member, None)):
            found += called_otherwise(f"{name}.{member}", declared, there[member])
    return found


def called_otherwise(name: str, declared: Any, calls: list[str]) -> list[str]:
    """Empty if one of the real signatures takes the declared parameters, by position and by name."""
    ours = list(inspect.signature(declared).parameters)[1:]
    fits = any(
        parameters(call)[0][: len(ours)] == ours and len(ours) >= parameters(call)[1] for call in calls
    )
    return [] if fits else [f"{name}({', '.join(ours)}) is none of {calls}"]


def made_otherwise(member: str, calls: list[str], module: type) -> list[str]:
    """The same for classes, which are called with positional arguments."""
    hint = typing.get_type_hints(module)[member]
    if typing.get_origin(hint) is not Callable:
        return []
    taken = len(typing.get_args(hint)[0])
    fits = any(parameters(call)[1] <= taken <= len(parameters(call)[0]) for call in calls)
    return [] if fits else [f"{member} with {taken} arguments is none of {calls}"]


def parameters(call: str) -> tuple[list[str], int]:
    """Names of a binding's parameters without `self`, and how many of them have no default."""
    inner, depth, pieces = call[call.index("(") + 1 : call.rindex(")")], 0, [""]
    for letter in inner:
        depth += (letter in "([<") - (letter in ")]>")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    named = [piece.strip() for piece in pieces[1:]]
    return [piece.split(":")[0] for piece in named], sum("=" not in piece for piece in named)


@pytest.mark.parametrize("version", [*VERSIONS, "rtx"])
def test_every_name_that_is_used_is_there_and_is_called_so(version: str) -> None:
    assert problems(real(version), expected(version)) == []


def test_what_is_not_there_is_noticed() -> None:
    """TensorRT has no part of TensorRT-RTX, and the names that TensorRT 11 dropped are not in it."""
    description = RECORDED["versions"][VERSIONS[-1]]
    assert "PortableConfig.num_compute_capabilities is missing" in problems(description, expected("rtx"))
    shorter = {**description, "BuilderFlag": {"TF32": []}}
    assert problems(shorter, expected(VERSIONS[-1])) == ["BuilderFlag.REFIT is missing"]
    calls = ["set_shape(self: X, input: str, low: Dims) -> None"]
    other = {**description, "IOptimizationProfile": {"set_shape": calls}}
    assert "set_shape(input, min, opt, max) is none of" in problems(other, expected(VERSIONS[-1]))[0]
    fewer = {**description, "module": {**description["module"], "Refitter": ["__init__(self: R, engine: E)"]}}
    assert "Refitter with 2 arguments is none of" in problems(fewer, expected(VERSIONS[-1]))[0]


def test_signatures_are_read_as_they_are_printed() -> None:
    call = "f(self: A, one: B, two: tuple[int, int] = <X.Y: 0>, three: C = None) -> D"
    assert parameters(call) == (["one", "two", "three"], 1)
    assert parameters("f(self: A) -> D") == ([], 0)


def test_the_module_is_used_through_its_types_alone() -> None:
    """No file but `kit.py` imports it, so that the type checker sees every use of its names."""
    importing = [
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
        if name.split(".")[0] in ("tensorrt", "tensorrt_rtx") and not getattr(node, "level", 0)
    ]
    assert importing == []
    assert "importlib.import_module(name)" in (Path(api.__file__).parent / "kit.py").read_text()


def test_the_stand_in_has_no_method_that_tensorrt_has_not() -> None:
    module = pytest.importorskip("tensorrt_rtx", reason="pip install 'fewstep[tensorrt-rtx]'")
    for name, stand_in in {
        "Builder": fake_gpu.Builder,
        "OnnxParser": fake_gpu.OnnxParser,
        "IBuilderConfig": fake_gpu.Config,
        "IOptimizationProfile": fake_gpu.Profile,
        "ICudaEngine": fake_gpu.Engine,
        "IExecutionContext": fake_gpu.Context,
        "Refitter": fake_gpu.Refitter,
    }.items():
        methods = {one for one, value in vars(stand_in).items() if callable(value) and one[0] != "_"}
        assert methods <= set(dir(getattr(module, name))), name


def test_names_of_cuda_exist_in_its_bindings() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    tree = ast.parse(Path(cuda.__file__).read_text())
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    calls = {word for word in words if isinstance(word, str) and word.startswith("cuda") and word.isalnum()}
    assert {"cudaMallocAsync", "cudaGraphLaunch"} <= calls
    attributes = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    nested = [name for name in attributes if "cudart." in name]
    assert nested
    for name in calls:
        assert hasattr(cudart, name), name
    for dotted in nested:
        value: Any = cudart
        for name in dotted.split("cudart.")[1].split("."):
            value = getattr(value, name)


def test_calls_of_cuda_pass_as_many_arguments_as_its_bindings_take() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    for node in ast.walk(ast.parse(Path(cuda.__file__).read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        names = [
            one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ]
        if not names or not hasattr(cudart, names[0]):
            continue
        place = [getattr(one, "value", None) for one in node.args].index(names[0])
        taken = getattr(cudart, names[0]).__doc__.split("(")[1].split(")")[0].split(",")
        assert len(node.args) - place - 1 == len(taken), names[0]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_is_what_the_bindings_say(version: str, tmp_path: Path) -> None:
    try:
        fetch(version, tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip(f"no package index here has {PACKAGE} {version} for this Python")
    assert describe_wheel(version, tmp_path) == RECORDED["versions"][version]
