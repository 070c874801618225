"""The house rules that can be counted."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("distill", "engines", "fewstep", "service")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines without decorators and docstring."""
    documented = ast.get_docstring(function) is not None
    first = function.body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert lines(path) <= 450


def test_functions_are_short() -> None:
    lengths = sorted(length(function) for path in SOURCES for function in functions(path))
    assert statistics.median(lengths) <= 10
    assert lengths[int(0.9 * len(lengths))] <= 35
    assert lengths[-1] <= 80


def test_there_is_at_least_as_much_test_as_source() -> None:
    assert sum(map(lines, TESTS)) >= sum(map(lines, SOURCES))


def test_the_readme_lists_every_source_file() -> None:
    """The tree in the README names each module once, and nothing that is not there."""
    tree = (ROOT / "README.md").read_text().split("## The house")[1].split("```")[1]
    folder, named = "", set()
    for line in tree.strip().splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
        else:
            named.add(folder + name)
    real = {str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"}
    assert {name for name in named if name.endswith(".py")} == real


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
