"""What the site changes in a page: links to files of the repository that are not pages become their text."""

from __future__ import annotations

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./(?:[^)]*)\)")


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """Called by mkdocs for each page. Pages in a folder link to those above them with `../`, and keep that."""
    path = page.file.src_path  # type: ignore[attr-defined]
    return markdown if "/" in path else OUTSIDE.sub(r"\1", markdown)
