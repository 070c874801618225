"""What goes wrong is said in words, and the page goes on where the server does."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from service.settings import Settings
from tests.e2e.conftest import start_server, stop_server
from tests.service.fake_runtime import FakeRuntime
from tests.service.running import run_server, wait_until

from .acting import PROMPT, content, draw, fill, from_api
from .conftest import Open

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_key(file: Path, *options: str) -> str:
    command = [sys.executable, "-m", "fewstep", "keys", "add", "alice", "--file", str(file), *options]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return next(word for word in said.split() if word.startswith("fs-"))


def give(page: Page, key: str) -> None:
    page.get_by_role("dialog").get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_a_full_server_is_asked_again_when_it_says_so(visit: Open, tmp_path: Path) -> None:
    settings, runtime = Settings(data_dir=tmp_path, log_level="warning", queue_limit=2), FakeRuntime()
    with run_server(settings, {"fake": runtime}) as running:
        page = visit(running.url)
        fill(page, prompt=PROMPT, steps=1, seed=6, n=1)
        runtime.gate.clear()
        filling = threading.Thread(target=running.generate, kwargs={"n": 2})
        filling.start()
        try:
            wait_until(lambda: running.metric("fewstep_inflight_images") == 2)
            page.get_by_role("button", name="Draw", exact=True).click()
            expect(page.get_by_text("The server is full")).to_be_visible()
            expect(page.locator(".notice")).to_contain_text("Trying again in")
        finally:
            runtime.gate.set()
            filling.join(30)
        expect(page.locator("figure.card a[download]")).to_have_count(1)
        expect(page.get_by_text("The server is full")).to_have_count(0)
        [expected] = from_api(running.url, prompt=PROMPT, seed=6, num_inference_steps=1)
        assert content(page, page.locator("figure.card a[download]").first) == expected


def test_what_the_server_refuses_for_good_is_said_in_its_words(visit: Open, tmp_path: Path) -> None:
    with run_server(Settings(data_dir=tmp_path, log_level="warning"), {"fake": FakeRuntime()}) as running:
        page = visit(running.url)
        fill(page, prompt="a bad-denoise prompt", n=1)
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.get_by_role("alert")).to_be_visible()
        fill(page, prompt="\u200b")
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("at least one visible character")


def test_keys_are_asked_for_checked_and_kept_for_the_tab(visit: Open, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    key = new_key(file)
    settings = Settings(data_dir=tmp_path, log_level="warning", api_keys=file)
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        page = visit(running.url)
        give(page, "fs-wrong")
        expect(page.get_by_role("alert")).to_contain_text("did not accept that key")
        give(page, key)
        draw(page, 4)
        page.get_by_text("As code").click()
        expect(page.locator(".snippets code")).to_contain_text("Authorization: Bearer $FEWSTEP_KEY")
        page.reload()
        draw(page, 4)
        expect(page.get_by_role("dialog")).to_have_count(0)
        assert page.evaluate("localStorage.getItem('key')") is None


def test_without_a_key_the_page_says_what_is_missing(visit: Open, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    key = new_key(file)
    settings = Settings(data_dir=tmp_path, log_level="warning", api_keys=file)
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        page = visit(running.url)
        page.get_by_role("button", name="Not now").click()
        expect(page.get_by_role("alert")).to_contain_text("An API key is needed")
        page.get_by_role("button", name="Try again").click()
        give(page, key)
        expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()


def test_a_key_that_has_used_up_its_share(visit: Open, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    key = new_key(file, "--limit", "8")
    settings = Settings(data_dir=tmp_path, log_level="warning", api_keys=file)
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        page = visit(running.url)
        give(page, key)
        fill(page, n=2, steps=4)
        draw(page, 2)
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.get_by_text("This key has used up its share for now")).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".frame.missing")).to_have_count(2)


def test_a_server_that_goes_and_comes_back(visit: Open, tmp_path: Path) -> None:
    port = str(free_port())
    first = start_server(tmp_path / "data", "--port", port)
    page = visit(first.url)
    fill(page, prompt=PROMPT, steps=1, seed=9, n=1)
    before = content(page, draw(page, 1).first)
    assert stop_server(first) == 0
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.locator("#connection")).to_contain_text("no answer")
    second = start_server(tmp_path / "data", "--port", port)
    try:
        expect(page.get_by_text("The server is back")).to_have_count(
            2
        )  # on the page, and for those who hear it
        page.get_by_role("button", name="Draw again").click()
        expect(page.locator("figure.card a[download]")).to_have_count(1)
        assert content(page, page.locator("figure.card a[download]").first) == before
    finally:
        assert stop_server(second) == 0


def test_the_page_waits_for_models_that_load(visit: Open, tmp_path: Path) -> None:
    with run_server(Settings(data_dir=tmp_path, log_level="warning"), {"fake": FakeRuntime()}) as running:
        page = visit("about:blank")
        nothing: dict[str, object] = {"object": "list", "data": []}
        page.route("**/v1/models", lambda route: route.fulfill(json=nothing), times=2)
        page.goto(running.url)
        expect(page.get_by_text("The models are loading")).to_be_visible()
        expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()


def test_who_goes_on_while_a_view_is_still_coming_stays_there(visit: Open, tmp_path: Path) -> None:
    with run_server(Settings(data_dir=tmp_path, log_level="warning"), {"fake": FakeRuntime()}) as running:
        page = visit("about:blank")
        held: list[Route] = []
        page.route("**/static/js/playground.js", lambda route: held.append(route))
        page.goto(running.url)
        expect(page.locator(".tabs a[aria-current]")).to_have_text("Playground")
        page.get_by_role("link", name="Models").click()
        expect(page.get_by_role("article", name="fake")).to_be_visible()
        held[0].continue_()
        page.wait_for_timeout(500)
        expect(page.get_by_role("article", name="fake")).to_be_visible()
        page.get_by_role("link", name="Playground").click()
        expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()


def test_a_view_that_could_not_be_made_can_be_tried_again(visit: Open, tmp_path: Path) -> None:
    with run_server(Settings(data_dir=tmp_path, log_level="warning"), {"fake": FakeRuntime()}) as running:
        page = visit(f"{running.url}/#/models")
        expect(page.get_by_role("article", name="fake")).to_be_visible()
        page.route("**/v1/models", lambda route: route.fulfill(status=500, json={}), times=1)
        page.get_by_role("link", name="Playground").click()
        expect(page.get_by_role("alert")).to_contain_text("The server failed")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()


def test_a_view_whose_files_did_not_arrive_can_be_tried_again(visit: Open, tmp_path: Path) -> None:
    """Browsers remember a module that failed; the page has to be loaded again."""
    with run_server(Settings(data_dir=tmp_path, log_level="warning"), {"fake": FakeRuntime()}) as running:
        page = visit("about:blank")
        page.route("**/static/js/prometheus.js", lambda route: route.abort())
        page.goto(f"{running.url}/#/health")
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
        expect(page.locator("main")).not_to_contain_text("module")
        page.unroute("**/static/js/prometheus.js")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("heading", name="Health", exact=True)).to_be_visible()


def test_a_view_that_is_first_wanted_while_the_server_is_away(visit: Open, tmp_path: Path) -> None:
    settings, port = Settings(data_dir=tmp_path, log_level="warning"), free_port()
    with run_server(settings, {"fake": FakeRuntime()}, port=port) as running:
        page = visit("about:blank")
        arrived = list[str]()
        page.on("requestfinished", lambda request: arrived.append(request.url.rpartition("/")[2]))
        page.goto(running.url)
        expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()
        names = {"health.js", "prometheus.js", "jobs.js", "jobform.js", "models.js", "reference.js"}
        wait_until(lambda: page.wait_for_timeout(50) or names <= set(arrived))
    for name in ("Jobs", "Models", "Health"):
        page.get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    with run_server(settings, {"fake": FakeRuntime()}, port=port):
        expect(page.get_by_role("heading", name="Throughput")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)
