"""Versions on the page, as the contract has them; the answers here are the test's."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Route, expect

from tests.e2e.conftest import Server

from .conftest import Open

pytestmark = pytest.mark.slow

NAME = "shapes-sana-sid"


def version(number: int, state: str, share: float) -> dict[str, object]:
    return {
        "object": "model.version",
        "id": f"{NAME}@{number}",
        "number": number,
        "digest": f"sha256:{str(number) * 64}",
        "state": state,
        "share": share,
        "published_at": 1_700_000_000,
        "reason": f"reason {number}",
        "gate": None,
        "loaded": True,
    }


class Versions:
    """A canary on trial until it is promoted or withdrawn."""

    def __init__(self, page: Page) -> None:
        self.data = [version(2, "canary", 0.1), version(1, "serving", 0.9)]
        self.asked: list[str] = []
        page.route("**/v1/models/*/versions", lambda route: route.fulfill(json=self.listed()))
        page.route("**/v1/models/*/promote", lambda route: self.change(route, "promote"))
        page.route("**/v1/models/*/rollback", lambda route: self.change(route, "rollback"))

    def listed(self) -> dict[str, object]:
        return {"object": "list", "data": self.data}

    def change(self, route: Route, verb: str) -> None:
        self.asked.append(f"{route.request.method} {verb}")
        if verb == "promote":
            self.data = [version(2, "serving", 1.0), version(1, "previous", 0.0)]
        else:
            self.data = [version(2, "retired", 0.0), version(1, "serving", 1.0)]
        route.fulfill(json=self.listed())


def test_a_canary_is_seen_promoted_and_rolled_back(visit: Open, server: Server) -> None:
    page = visit("about:blank")
    versions = Versions(page)
    page.goto(f"{server.url}/#/models")
    shown = page.get_by_role("region", name=f"Versions of {NAME}")
    expect(shown.get_by_role("row").filter(has_text=f"{NAME}@2")).to_contain_text("10 %")
    expect(shown).to_contain_text("reason 1")
    shown.get_by_role("button", name="Promote the canary").click()
    expect(shown.get_by_role("row").filter(has_text=f"{NAME}@2")).to_contain_text("serving")
    shown.get_by_role("button", name="Roll back").click()
    expect(shown.get_by_role("row").filter(has_text=f"{NAME}@2")).to_contain_text("retired")
    expect(shown.get_by_role("button")).to_have_count(2)  # the digests, to be copied
    assert versions.asked == ["POST promote", "POST rollback"]


def test_a_canary_is_withdrawn(visit: Open, server: Server) -> None:
    page = visit("about:blank")
    versions = Versions(page)
    page.goto(f"{server.url}/#/models")
    page.get_by_role("button", name="Withdraw the canary").click()
    expect(page.get_by_text("retired")).to_be_visible()
    assert versions.asked == ["POST rollback"]


def test_a_change_that_is_refused_is_said(visit: Open, server: Server) -> None:
    page = visit("about:blank")
    Versions(page)
    body = {"error": {"message": "Needs an admin key.", "type": "x", "param": None, "code": "forbidden"}}
    page.route("**/v1/models/*/promote", lambda route: route.fulfill(status=403, json=body))
    page.goto(f"{server.url}/#/models")
    page.get_by_role("button", name="Promote the canary").click()
    expect(page.get_by_role("alert")).to_contain_text("This key may not do that")
