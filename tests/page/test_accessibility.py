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

VIEWS = {
    "": ".composer",
    "jobs": ".page",
    "jobs/new": ".job-form",
    "models": ".model",
    "health": ".tile",
    "api": ".routes details",
}


def problems(page: Page) -> list[str]:
    """What axe calls serious or critical, with the elements."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {[node['html'][:160] for node in each['nodes'][:5]]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def surplus(page: Page) -> int:
    """Pixels by which the page is wider than there is room for it."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.body.offsetWidth"))


def settle(page: Page) -> None:
    """Colours that are still changing would be measured half-way."""
    page.evaluate("Promise.all(document.getAnimations().map(each => each.finished.catch(() => 0)))")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_on_every_view(visit: Open, server: Server, scheme: str, width: int) -> None:
    viewport = {"width": width, "height": 800}
    page = visit(server.url, color_scheme=scheme, reduced_motion="reduce", viewport=viewport)
    for name, mark in VIEWS.items():
        page.goto(f"{server.url}/#/{name}")
        page.locator(mark).first.wait_for()
        settle(page)
        assert problems(page) == [], name


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


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_the_bar_is_two_lines_with_a_key_too(visit: Open, server: Server, width: int) -> None:
    page = visit(server.url, viewport={"width": width, "height": 740})
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()
    page.evaluate("document.getElementById('key').hidden = false")
    page.locator("#connection span").evaluate("node => { node.textContent = 'no answer'; }")
    brand, tools = page.locator(".brand").bounding_box(), page.locator(".tools").bounding_box()
    assert brand is not None
    assert tools is not None
    assert tools["y"] < brand["y"] + brand["height"]
    assert tools["x"] + tools["width"] <= width


def test_a_message_that_is_not_there_takes_no_room(playground: Page) -> None:
    form, desk = playground.locator(".composer").bounding_box(), playground.locator(".welcome").bounding_box()
    assert form is not None
    assert desk is not None
    assert form["y"] == desk["y"]


@pytest.mark.parametrize("width", [320, 390, 768, 1920, 3840])
def test_nothing_is_wider_than_the_screen(visit: Open, server: Server, width: int) -> None:
    page = visit(server.url, viewport={"width": width, "height": 800})
    fill(page, prompt="a" * 300, compare="Steps", n=2)
    draw(page, 6)
    page.get_by_text("As code").click()
    page.evaluate(
        "() => { const strip = document.querySelector('.strip');"
        " for (let n = 0; n < 20; n += 1) strip.append(strip.firstElementChild.cloneNode(true)); }"
    )
    assert surplus(page) == 0
    for name, mark in VIEWS.items():
        page.goto(f"{server.url}/#/{name}")
        page.locator(mark).first.wait_for()
        assert surplus(page) == 0, name


def test_a_very_wide_screen_is_used(visit: Open, server: Server) -> None:
    """More of it than the middle, in letters that can be read from further away."""
    page = visit(server.url, viewport={"width": 3840, "height": 2160})
    fill(page, compare="Steps", n=2)
    draw(page, 6)
    box = page.locator(".playground").bounding_box()
    assert box is not None
    assert box["width"] > 0.6 * 3840
    size = "parseFloat(getComputedStyle(document.body).fontSize)"
    assert page.evaluate(size) > 18
    assert visit(server.url, viewport={"width": 1920, "height": 1080}).evaluate(size) == 15


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


def test_the_choice_is_seen_where_the_system_forces_its_colours(visit: Open, server: Server) -> None:
    page = visit(server.url, forced_colors="active")
    fill(page, compare="Steps", n=1)
    ground = "label => getComputedStyle(label).backgroundColor"
    chosen, other = (
        page.locator("label", has=page.get_by_role("radio", name=name)) for name in ("Steps", "Off")
    )
    assert chosen.evaluate(ground) not in (other.evaluate(ground), page.locator("body").evaluate(ground))
    draw(page, 3)
    colours = {page.locator(".time-bar").first.locator("i").nth(n).evaluate(ground) for n in range(5)}
    assert len(colours) == 5


def test_nothing_moves_for_those_who_do_not_want_it(visit: Open, server: Server) -> None:
    page = visit(server.url, reduced_motion="reduce")
    seconds = page.evaluate(
        "() => { const frame = document.createElement('div'); frame.className = 'frame waiting';"
        " document.body.append(frame); return getComputedStyle(frame, '::before').animationDuration; }"
    )
    assert float(seconds.removesuffix("s")) < 0.01


def test_without_scripts_the_page_says_so(visit: Open, server: Server) -> None:
    page = visit(server.url, java_script_enabled=False)
    assert "This page needs JavaScript" in page.locator("main").inner_text()
    expect(page.get_by_role("navigation")).to_be_hidden()
    page.locator("noscript a").click()
    expect(page.locator("body")).to_contain_text("/v1/images/generations")


def test_prompts_are_set_in_their_own_direction_and_not_at_any_length(playground: Page) -> None:
    heading = playground.locator("h1.prompt")
    fill(playground, prompt="دائرة حمراء", n=1, steps=1)
    draw(playground, 1)
    for place in (heading, playground.get_by_label("Prompt"), playground.locator(".thumb-text").first):
        assert place.evaluate("node => getComputedStyle(node).direction") == "rtl"
    fill(playground, prompt="🔴 " + "a red circle " * 300)
    draw(playground, 1)
    expect(heading).to_contain_text("🔴 a red circle")
    assert heading.evaluate("node => node.offsetHeight") < 200
