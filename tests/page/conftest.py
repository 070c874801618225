"""A real Chromium on pages of real servers; what a page complains about fails its test."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.conftest import Server, start_server, stop_server

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EXPECTED = "Failed to load resource"
"""How the browser notes answers that are errors; the tests that provoke them look at what is shown."""

LOCAL = re.compile(r"(http://127\.0\.0\.1:\d+/|data:|blob:|about:)")
Open = Callable[..., Page]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Ends with this folder's tests: while Playwright runs, no other event loop can on this thread."""
    if not Path(CHROMIUM).exists():
        pytest.skip("there is no Chromium here; scripts/system-packages installs one")
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shipped model, as anybody gets it."""
    running = start_server(tmp_path_factory.mktemp("data"))
    yield running
    assert stop_server(running) == 0


@pytest.fixture
def complaints() -> list[str]:
    """What pages have said on the console; a test that provokes one takes it out."""
    return []


@pytest.fixture
def visit(browser: Browser, complaints: list[str]) -> Iterator[Open]:
    """Opens an address in a fresh profile: `visit(url, color_scheme="dark")`."""
    contexts, elsewhere = [], list[str]()

    def opened(url: str, **profile: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **profile})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        context.on(
            "request", lambda request: elsewhere.append(request.url) if not LOCAL.match(request.url) else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [text for text in complaints if EXPECTED not in text] == []
    assert elsewhere == []


@pytest.fixture
def playground(visit: Open, server: Server) -> Page:
    page = visit(server.url)
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()
    return page
