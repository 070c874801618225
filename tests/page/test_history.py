"""What was drawn before: kept, bounded, shared by tabs, given up where the browser wants that."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.e2e.conftest import Server

from .acting import PROMPT, clear_history, content, draw, fill, shown


def test_the_history_outlives_the_page(playground: Page) -> None:
    fill(playground, prompt=PROMPT, steps=1, seed=8, n=2, format="webp")
    before = content(playground, draw(playground, 2).first)
    expect(playground.locator(".thumb")).to_have_count(1)
    playground.reload()
    playground.locator(".thumb").click()
    assert shown(playground) == {"prompt": PROMPT, "seed": "8", "n": "2", "format": "webp", "steps": "1"}
    assert content(playground, playground.locator("figure.card a[download]").first) == before
    clear_history(playground)
    expect(playground.locator(".thumb")).to_have_count(0)
    playground.reload()
    expect(playground.get_by_role("button", name="Draw", exact=True)).to_be_visible()
    expect(playground.locator(".thumb")).to_have_count(0)


def test_a_history_is_not_cleared_by_one_click(playground: Page) -> None:
    fill(playground, prompt=PROMPT, steps=1, seed=8, n=1)
    draw(playground, 1)
    clear = playground.get_by_role("button", name="Clear")
    clear.click()
    expect(clear).to_have_text("Clear 1 run for good?")
    expect(playground.locator(".thumb")).to_have_count(1)
    playground.get_by_label("Prompt").focus()
    expect(clear).to_have_text("Clear")
    clear.click()
    expect(playground.locator(".thumb")).to_have_count(1)


def test_the_history_is_bounded(playground: Page) -> None:
    gone = playground.evaluate(
        """async () => {
            const { overflow } = await import("/static/js/history.js");
            const run = (id, size) => ({ id, columns: [{ pictures: [{ blob: { size } }, undefined] }] });
            const all = [run(5, 70), run(4, 10), run(3, 10), run(2, 10), run(1, 10)];
            return [{ runs: 3, bytes: 1000 }, { runs: 9, bytes: 95 }, { runs: 1, bytes: 1 }]
                .map(limits => overflow(all, limits).map(each => each.id));
        }"""
    )
    assert gone == [[2, 1], [2, 1], [4, 3, 2, 1]]
    kept = playground.evaluate(
        """async () => {
            const { keep, LIMITS, runs } = await import("/static/js/history.js");
            for (let id = 1; id <= LIMITS.runs + 1; id += 1) await keep({ id, columns: [] });
            return [LIMITS.runs, (await runs()).map(each => each.id)];
        }"""
    )
    assert kept == [60, list(range(61, 1, -1))]


def test_two_tabs_share_the_history_as_it_is(playground: Page) -> None:
    """What one tab draws or clears the other shows, without being loaded again."""
    other = playground.context.new_page()
    other.goto(playground.url)
    for count, (page, seed) in enumerate(((playground, 1), (other, 2), (playground, 3)), start=1):
        fill(page, prompt=PROMPT, seed=seed, n=1, steps=1)
        draw(page, 1)
        for each in (playground, other):
            expect(each.locator(".thumb")).to_have_count(count)
            expect(each.locator(".thumb").first).to_have_attribute("title", re.compile(f"seed {seed}$"))
    clear_history(playground)
    for page in (playground, other):
        expect(page.locator(".thumb")).to_have_count(0)
        expect(page.get_by_role("region", name="History")).to_be_hidden()
    expect(other.locator("figure.card")).to_have_count(1)


def test_who_is_at_a_picture_stays_there_while_another_tab_draws(playground: Page) -> None:
    fill(playground, prompt=PROMPT, seed=1, n=1, steps=1)
    draw(playground, 1)
    mine = playground.locator(".thumb[title$='seed 1']")
    mine.focus()
    other = playground.context.new_page()
    other.goto(playground.url)
    fill(other, prompt=PROMPT, seed=2, n=1, steps=1)
    draw(other, 1)
    expect(playground.locator(".thumb")).to_have_count(2)
    expect(mine).to_be_focused()


def test_tabs_are_told_after_the_change(playground: Page) -> None:
    """Each message finds the history as it then is; one that keeps or clears hears nothing of itself."""
    told = playground.evaluate(
        """async () => {
            const { clear, keep, runs } = await import("/static/js/history.js");
            const heard = [], other = new BroadcastChannel("history");
            const found = async resolve => resolve((await runs()).length);
            const next = () => new Promise(resolve => { other.onmessage = () => found(resolve); });
            const kept = id => () => keep({ id, columns: [] });
            for (const change of [kept(1), kept(2), clear]) {
                const message = next();
                await change();
                heard.push(await message);
            }
            return heard;
        }"""
    )
    assert told == [1, 2, 0]
    expect(playground.locator(".thumb")).to_have_count(0)


def test_where_the_browser_has_no_room_the_oldest_pictures_go(playground: Page) -> None:
    playground.evaluate(
        """() => {
            const put = IDBObjectStore.prototype.put, full = () => new DOMException("", "QuotaExceededError");
            window.kept = 0;
            IDBObjectStore.prototype.put = function (run) {
                if (window.kept < 2) { window.kept += 1; return put.call(this, run); }
                window.kept -= 1;
                throw full();
            };
        }"""
    )
    for seed in (1, 2, 3):
        fill(playground, prompt=PROMPT, seed=seed, n=1, steps=1)
        draw(playground, 1)
        expect(playground.locator(".thumb").first).to_have_attribute("title", re.compile(f"seed {seed}$"))
    expect(playground.locator(".thumb")).to_have_count(2)


def test_a_history_that_the_browser_refuses_is_said(playground: Page, server: Server) -> None:
    quota = {"origin": server.url, "quotaSize": 1}
    playground.context.new_cdp_session(playground).send("Storage.overrideQuotaForOrigin", quota)
    fill(playground, n=1, steps=1)
    draw(playground, 1)
    expect(playground.get_by_text("The browser refuses: QuotaExceededError")).to_be_visible()
