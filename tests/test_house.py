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


def listed() -> set[str]:
    """Paths of the tree in docs/house.md: a line at the margin is a folder, an indented one a file in it."""
    folder, named = "", set()
    for line in (ROOT / "docs" / "house.md").read_text().split("```")[1].strip().splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            named.add(folder + name)
        else:
            folder = name
    return named


def test_the_house_lists_every_source_file() -> None:
    real = {str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"}
    named = {name for name in listed() if name.endswith(".py")}
    assert named == real, (
        f"the tree of files is in docs/house.md (no longer in README.md); add with one remark: "
        f"{sorted(real - named)}; take out: {sorted(named - real)}"
    )


def test_the_tree_of_files_is_nowhere_else() -> None:
    assert "  trainer.py  " not in (ROOT / "README.md").read_text(), "lines for files belong in docs/house.md"


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
