"""Everybody can use it: axe finds nothing serious, phones need not scroll sideways."""

from __future__ import annotations

import json

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Server

from .acting import draw, fill
from .conftest import Open

pytestmark = pytest.mark.slow

VIEWS = {"": ".composer", "jobs": ".page", "models": ".model", "health": ".tile"}


def problems(page: Page) -> list[str]:
    """What axe calls serious or critical, with the elements."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {[node['html'][:160] for node in each['nodes'][:5]]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def settle(page: Page) -> None:
    """Colours that are still changing would be measured half-way."""
    page.evaluate("Promise.all(document.getAnimations().map(each => each.finished.catch(() => 0)))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_on_every_view(visit: Open, server: Server, scheme: str) -> None:
    page = visit(server.url, color_scheme=scheme, reduced_motion="reduce")
    for name, mark in VIEWS.items():
        page.goto(f"{server.url}/#/{name}")
        page.locator(mark).first.wait_for()
        settle(page)
        assert problems(page) == [], name
    page.goto(f"{server.url}/docs")
    page.locator(".routes details").first.wait_for()
    assert problems(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_with_pictures_history_and_dialog(visit: Open, server: Server, scheme: str) -> None:
    page = visit(server.url, color_scheme=scheme, reduced_motion="reduce")
    fill(page, compare="Steps", n=1)
    draw(page, 3)
    page.get_by_text("As code").click()
    expect(page.locator(".thumb")).to_have_count(1)
    settle(page)
    assert problems(page) == []
    page.locator(".frame").first.click()
    settle(page)
    assert problems(page) == []


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_nothing_is_wider_than_the_screen(visit: Open, server: Server, width: int) -> None:
    page = visit(server.url, viewport={"width": width, "height": 800})
    fill(page, compare="Steps", n=2)
    draw(page, 6)
    for name, mark in VIEWS.items():
        page.goto(f"{server.url}/#/{name}")
        page.locator(mark).first.wait_for()
        surplus = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert surplus <= 0, name


def test_the_theme_can_be_chosen(playground: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    automatic = playground.evaluate(ground)
    theme = playground.get_by_role("button", name="Theme:")
    for expected in ("Light", "Dark"):
        theme.click()
        expect(theme).to_have_text(expected)
    dark = playground.evaluate(ground)
    assert dark != automatic
    playground.reload()
    expect(theme).to_have_text("Dark")
    assert playground.evaluate(ground) == dark


def test_the_first_key_leads_past_the_bar(playground: Page) -> None:
    playground.keyboard.press("Tab")
    expect(playground.get_by_role("link", name="Skip to the content")).to_be_focused()
    landmarks = playground.evaluate(
        "['header', 'nav', 'main', 'form'].map(name => document.querySelectorAll(name).length > 0)"
    )
    assert json.dumps(landmarks) == "[true, true, true, true]"
