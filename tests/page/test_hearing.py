"""The page as a screen reader has it: what each control is called, and what is said of what happens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from service.settings import Settings
from tests.e2e.conftest import Server
from tests.service.fake_runtime import FakeRuntime
from tests.service.jobs.office import Office
from tests.service.running import run_server, wait_until

from .acting import PROMPT, clear_history, draw, fill
from .conftest import Open
from .test_accessibility import VIEWS
from .test_jobs import submit

pytestmark = pytest.mark.slow

CONTROLS = "button|link|textbox|combobox|radio|checkbox|spinbutton|slider"
ROOMS = "dialog|form|region|figure|navigation"
NAMELESS = re.compile(rf"^\s*- '?({CONTROLS}|{ROOMS})(?! ['\"])")


def nameless(page: Page) -> list[str]:
    """Lines of the accessibility tree whose role needs a name and has none."""
    tree = page.locator("body").aria_snapshot().splitlines()
    assert len(tree) > 20
    return [line.strip() for line in tree if NAMELESS.match(line)]


def listen(page: Page) -> None:
    """From now on what polite live regions say is noted, in order."""
    page.evaluate(
        """() => {
            window.heard = [];
            new MutationObserver(changes => {
                for (const { target } of changes) {
                    const element = target.closest ? target : target.parentElement;
                    const region = element?.closest("[aria-live], [role=status]");
                    if (region?.ariaLive === "off" || !region?.textContent) continue;
                    if (window.heard.at(-1) !== region.textContent) window.heard.push(region.textContent);
                }
            }).observe(document.body, { childList: true, characterData: true, subtree: true });
        }"""
    )


def heard(page: Page) -> list[str]:
    said: list[str] = page.evaluate("window.heard")
    return said


def hears(page: Page, text: str) -> None:
    page.wait_for_function("text => window.heard.some(each => each.includes(text))", arg=text)


def focused(page: Page) -> Locator:
    return page.locator(":focus")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Office]:
    settings = Settings(data_dir=tmp_path, log_level="warning", jobs_workers=False)
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        yield Office(running)


def test_every_control_has_a_name(visit: Open, server: Server) -> None:
    page = visit(server.url)
    for name, mark in VIEWS.items():
        page.goto(f"{server.url}/#/{name}")
        page.locator(mark).first.wait_for()
        assert nameless(page) == [], name
    page.goto(server.url)
    fill(page, compare="Steps", n=1)
    draw(page, 3)
    page.get_by_text("As code").click()
    assert nameless(page) == []
    page.locator(".frame").first.click()
    expect(page.get_by_role("dialog", name="Picture 1 of 3, seed")).to_be_visible()
    assert nameless(page) == []


def test_a_nameless_control_would_be_found(playground: Page) -> None:
    playground.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert nameless(playground) == ["- button"]


def test_names_begin_with_what_is_seen(playground: Page) -> None:
    """Whoever speaks to a control says what stands on it."""
    fill(playground, compare="Steps", n=1)
    draw(playground, 3)
    playground.locator(".frame").first.click()
    wrong = playground.evaluate(
        """() => [...document.querySelectorAll("button[aria-label], a[aria-label]")]
            .map(node => [node.innerText.trim().toLowerCase(), node.getAttribute("aria-label").toLowerCase()])
            .filter(([seen, name]) => /[a-z0-9]/.test(seen) && !name.includes(seen))"""
    )
    assert wrong == []


def test_drawing_is_heard_from_the_beginning_to_the_end(playground: Page) -> None:
    listen(playground)
    fill(playground, prompt=PROMPT, steps="Auto", n=2)
    draw(playground, 2)
    hears(playground, "2 pictures drawn in")
    said = heard(playground)
    assert said[0] == "Drawing 2 pictures"
    assert said[-1].endswith("4 steps")
    playground.get_by_text("As code").click()
    for _ in range(2):
        playground.get_by_role("button", name="Copy").click()
        hears(playground, "Copied")
        expect(playground.get_by_role("button", name="Copy", exact=True)).to_be_visible()
        playground.evaluate("window.heard = []")
    clear_history(playground)
    hears(playground, "History cleared")
    expect(focused(playground)).to_have_id("view")


def test_waiting_for_room_is_said_once(visit: Open, tmp_path: Path) -> None:
    settings, runtime = Settings(data_dir=tmp_path, log_level="warning", queue_limit=2), FakeRuntime()
    with run_server(settings, {"fake": runtime}) as running:
        page = visit(running.url)
        fill(page, n=1)
        refusal = {"error": {"message": "2 images are inside.", "type": "x", "param": None, "code": "full"}}
        page.route(
            "**/v1/images/generations",
            lambda route: route.fulfill(status=429, json=refusal, headers={"retry-after": "3"}),
            times=1,
        )
        listen(page)
        page.get_by_role("button", name="Draw", exact=True).click()
        hears(page, "Trying again in 3 s. 2 images are inside.")
        expect(page.get_by_role("timer")).to_have_text("1")
        assert sum("Trying again" in each for each in heard(page)) == 1
        expect(page.locator("figure.card a[download]")).to_have_count(1)


def test_stopping_is_heard_and_what_was_not_drawn_says_so(visit: Open, tmp_path: Path) -> None:
    runtime = FakeRuntime()
    with run_server(Settings(data_dir=tmp_path, log_level="warning"), {"fake": runtime}) as running:
        page = visit(running.url)
        listen(page)
        runtime.gate.clear()
        fill(page, n=1, seed=5)
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.get_by_role("button", name="Picture with seed 5, waiting")).to_be_disabled()
        wait_until(lambda: running.metric("fewstep_inflight_images") == 1)
        page.get_by_role("button", name="Stop").click()
        hears(page, "Stopped")
        expect(page.get_by_role("button", name="Picture with seed 5, not drawn")).to_be_disabled()
        runtime.gate.set()


def test_large_pictures_are_gone_through_by_buttons_and_by_keys(playground: Page) -> None:
    fill(playground, prompt=PROMPT, seed=7, steps=2, n=3)
    draw(playground, 3)
    opener = playground.locator(".frame").first
    opener.press("Enter")
    dialog = playground.get_by_role("dialog", name="Picture 1 of 3, seed 7, 2 steps")
    expect(dialog).to_be_focused()
    listen(playground)
    playground.get_by_role("button", name="Next picture").focus()
    for number in (2, 3):
        playground.keyboard.press("Enter")
        name = f"Picture {number} of 3, seed {6 + number}, 2 steps"
        expect(playground.get_by_role("dialog", name=name)).to_be_visible()
        expect(playground.get_by_role("button", name="Next picture")).to_be_focused()
        hears(playground, name)
    playground.keyboard.press("ArrowRight")
    expect(playground.get_by_role("dialog", name="Picture 1 of 3")).to_be_visible()
    playground.get_by_role("button", name="copy the whole digest").first.click()
    hears(playground, "Copied")
    expect(playground.get_by_role("dialog").locator(".announcer")).to_have_text("Copied")
    playground.keyboard.press("Escape")
    expect(opener).to_be_focused()


def test_the_way_past_the_bar_leads_into_the_view_that_is_shown(visit: Open, server: Server) -> None:
    page = visit(f"{server.url}/#/models")
    page.get_by_role("article").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("main", name="Models")).to_be_focused()
    expect(page.get_by_role("article")).to_be_visible()
    assert page.url.endswith("#/models")


def test_what_becomes_of_a_job_is_heard(place: Office, visit: Open) -> None:
    page = visit("about:blank")
    submit(page, place, Name_of_the_student="mine")
    listen(page)
    lease = place.take()
    place.progress(lease, 10)
    hears(page, "mine: running")
    page.get_by_role("button", name="Pause").click()
    hears(page, "mine: running, to pause")
    expect(page.get_by_role("heading", name="mine")).to_be_focused()
    page.get_by_role("button", name="Cancel").focus()
    for step, colour in ((20, "red"), (30, "blue")):
        place.checkpoint(lease, step, colour)
        place.progress(lease, step, sample=f"samples/{step}.png")
    slider = page.get_by_role("slider", name="Checkpoint")
    expect(slider).to_have_attribute("aria-valuetext", "iteration 30")
    slider.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "iteration 20")
    result = {"published": False, "reasons": ["accuracy is 0.8"]}
    place.store.finish(lease, "succeeded", "done", result=result)
    hears(page, "mine: succeeded. Not served")
    assert nameless(page) == []


def test_curves_are_read_off_like_a_slider(place: Office, visit: Open) -> None:
    page = visit("about:blank")
    submit(page, place, Name_of_the_student="mine")
    lease = place.take()
    for iteration in (10, 20, 40):
        place.progress(lease, iteration)
        expect(page.get_by_text(f"{iteration} of 100")).to_be_visible()
    plot = page.get_by_role("slider", name="Losses")
    plot.focus()
    for key, said in (
        ("End", "40: generator 0.025, fake 0.5"),
        ("ArrowLeft", "20: generator 0.05, fake 0.5"),
        ("Home", "10: generator 0.1, fake 0.5"),
        ("ArrowRight", "20: generator 0.05, fake 0.5"),
    ):
        plot.press(key)
        expect(plot).to_have_attribute("aria-valuetext", said)
        expect(page.locator(".chart output").first).to_have_text(said)
    assert [plot.get_attribute(f"aria-value{name}") for name in ("min", "now", "max")] == ["0", "1", "2"]


@pytest.mark.parametrize("view", ["jobs", "health"])
def test_that_the_server_is_away_is_an_alert_once(visit: Open, server: Server, view: str) -> None:
    page = visit(f"{server.url}/#/{view}")
    page.locator({"jobs": ".empty", "health": ".tile"}[view]).first.wait_for()
    page.evaluate(
        """() => {
            window.alerts = 0;
            new MutationObserver(changes => {
                for (const { addedNodes } of changes) for (const node of addedNodes)
                    window.alerts += node.matches?.("[role=alert]") || Boolean(node.querySelector?.("[role=alert]"));
            }).observe(document.body, { childList: true, subtree: true });
        }"""
    )
    asked: list[str] = []
    for path in ("/v1/distillation/jobs?**", "/metrics"):
        page.route(f"**{path}", lambda route: (asked.append(route.request.url), route.abort()))
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    before = len(asked)
    page.wait_for_timeout(7000)
    assert len(asked) > before + 1
    assert page.evaluate("window.alerts") == 1


def test_another_version_that_serves_is_heard(visit: Open, server: Server) -> None:
    page = visit("about:blank")
    version = {
        "id": "m@2",
        "state": "canary",
        "share": 0.1,
        "digest": "sha256:" + "1" * 64,
        "published_at": 0,
        "reason": "",
    }
    page.route("**/versions", lambda route: route.fulfill(json={"data": [version]}))
    page.route("**/promote", lambda route: route.fulfill(json={}))
    page.goto(f"{server.url}/#/models")
    page.get_by_role("button", name="Promote the canary").wait_for()
    listen(page)
    page.get_by_role("button", name="Promote the canary").click()
    hears(page, "The canary serves all requests")
