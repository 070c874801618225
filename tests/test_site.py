"""The site builds without a warning and asks no other host for anything; the reference is that of the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from scripts import reference
from scripts.site import on_page_markdown

from .documents import ROOT

PAGES = sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_reference_is_that_of_the_code(name: str) -> None:
    committed = (reference.FOLDER / name).read_text()
    assert committed == reference.PAGES[name](), (
        f"docs/reference/{name} is out of date: run `python -m scripts.reference` and commit what it writes"
    )


def test_the_reference_has_no_other_pages() -> None:
    assert {path.name for path in reference.FOLDER.iterdir()} == set(reference.PAGES)


def test_the_reference_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    reference.main([str(tmp_path / "new")])
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(reference.PAGES)


def test_the_navigation_has_every_page_once() -> None:
    def pages(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        inside = node.values() if isinstance(node, dict) else node
        return [page for one in inside for page in pages(one)]  # type: ignore[attr-defined]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == PAGES, "each page of docs/ has one line under `nav` in mkdocs.yml"


def test_the_site_builds_strictly_and_is_whole(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("mkdocs")),
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path),
    ]
    assert shutil.which(command[0]), "mkdocs is in the extra docs"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe|link)[^>]+(?:src|href)=\"?((?:https?:)?//[^\" >]+)", page.read_text()
        )
        assert not loaded, f"{page.relative_to(tmp_path)} asks {loaded}"


def test_links_to_files_that_are_no_pages_become_words() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_path="page.md"))
    text = "[a page](other.md), [a file](../deploy/file), [a site](https://example.com)"
    assert on_page_markdown(text, page) == "[a page](other.md), a file, [a site](https://example.com)"
    page.file.src_path = "reference/page.md"
    assert on_page_markdown("[up](../page.md)", page) == "[up](../page.md)"


@pytest.mark.parametrize("name", ["settings.md", "metrics.md"])
def test_every_setting_and_metric_has_words(name: str) -> None:
    rows = [row for row in (reference.FOLDER / name).read_text().splitlines() if row.startswith("| `")]
    assert rows
    assert not [row for row in rows if not re.split(r"(?<!\\)\|", row.strip("|"))[-1].strip()]


@pytest.mark.parametrize(
    ("text", "cell"), [("a | b", r"a \| b"), ("runs/<recipe> `<x>`", "runs/&lt;recipe> `<x>`")]
)
def test_cells_stay_cells(text: str, cell: str) -> None:
    assert reference._cell(text) == cell


def test_types_read_as_words() -> None:
    schema = {"anyOf": [{"type": "array", "items": {"$ref": "#/x/Thing"}}, {"enum": ["a"]}, {"type": "null"}]}
    assert reference._type(schema) == 'list of [Thing](#thing) or `"a"` or null'
