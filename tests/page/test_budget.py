"""What the page weighs, where it comes from, and what it may not do."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, Request, expect

from service.routes.operations import STATIC
from tests.e2e.conftest import Server

from .conftest import Open
from .test_accessibility import VIEWS

BUDGET = 150_000
FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())


def test_all_views_together_stay_in_the_budget(
    visit: Open, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    page, requests = visit("about:blank"), list[Request]()
    page.on("requestfinished", lambda request: requests.append(request))
    for view, mark in VIEWS.items():
        page.goto(f"{server.url}/#/{view}")
        page.locator(mark).first.wait_for()
    weight = sum(sum(request.sizes()[part] for part in ("responseBodySize", "responseHeadersSize"))
                 for request in requests)  # fmt: skip
    assert all(request.url.startswith(server.url) for request in requests)
    with capsys.disabled():
        print(f"\nall views: {weight / 1000:.0f} kB transferred in {len(requests)} requests")
    assert weight < BUDGET


def test_a_second_visit_transfers_next_to_nothing(visit: Open, server: Server) -> None:
    page = visit(server.url)
    page.locator(".composer").wait_for()
    requests = list[Request]()
    page.on("requestfinished", lambda request: requests.append(request))
    page.reload()
    page.locator(".composer").wait_for()
    static = [request for request in requests if "/static/" in request.url]
    assert static
    assert sum(request.sizes()["responseBodySize"] for request in static) < 1000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_small_served_as_what_they_are_and_from_here(server: Server, path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 300
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
    assert {address for address in addresses if "${" not in address} == set()
    answer = httpx.get(f"{server.url}/static/{path.relative_to(STATIC)}")
    kinds = {".js": "javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    assert kinds[path.suffix] in answer.headers["content-type"]
    assert answer.text == text


@pytest.mark.parametrize("path", ["/", "/docs", "/static/js/app.js"])
def test_the_policy_allows_this_origin_and_nothing_inline(server: Server, path: str) -> None:
    answer = httpx.get(server.url + path)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert not re.search(r"<style|<script>|\son\w+=|\sstyle=", answer.text) or path.endswith(".js")


def test_inline_script_is_refused_by_the_browser(playground: Page, complaints: list[str]) -> None:
    playground.evaluate(
        "const script = document.createElement('script'), refused = document.body.dataset;"
        " script.textContent = 'window.ran = 1';"
        " addEventListener('securitypolicyviolation', e => { refused.refused = e.effectiveDirective; });"
        " document.body.append(script);"
    )
    expect(playground.locator("body")).to_have_attribute("data-refused", "script-src-elem")
    assert playground.evaluate("window.ran") is None
    assert "inline script violates" in complaints.pop()


def test_no_file_outside_is_served(server: Server) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/nothing.js", "/static/js"):
        answer = httpx.get(server.url + path)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


def test_files_are_compressed_for_those_who_read_that(server: Server) -> None:
    address = f"{server.url}/static/js/health.js"
    plain = httpx.get(address, headers={"accept-encoding": "identity"})
    small = httpx.get(address)
    assert (plain.headers.get("content-encoding"), small.headers["content-encoding"]) == (None, "gzip")
    assert small.text == plain.text
    unchanged = httpx.get(address, headers={"if-none-match": small.headers["etag"]})
    assert unchanged.status_code == 304
