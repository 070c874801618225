"""What people do on the page, in the words of the tests."""

from __future__ import annotations

import base64
from typing import Any

import httpx
from playwright.sync_api import Locator, Page, expect

PROMPT = "a red circle above a green star on a gray background"
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def fill(page: Page, **settings: object) -> None:
    """By the labels of the form; `steps` and `compare` are radio buttons."""
    for name in ("compare", "steps"):
        if name in settings:
            page.get_by_role("group", name=name.capitalize()).get_by_text(
                str(settings[name]), exact=True
            ).click()
    for name in ("model", "other", "size", "format"):
        if name in settings:
            page.locator(f"select[name={name}]").select_option(str(settings[name]))
    if "prompt" in settings:
        page.get_by_label("Prompt").fill(str(settings["prompt"]))
    if "n" in settings:
        page.get_by_role("spinbutton", name="Pictures").fill(str(settings["n"]))
    if "seed" in settings:
        page.get_by_label("Seed", exact=True).fill(str(settings["seed"]))


def shown(page: Page) -> dict[str, Any]:
    """What the form says."""
    named = {name: page.locator(f"form.composer [name={name}]") for name in ("prompt", "seed", "n", "format")}
    values: dict[str, Any] = {name: field.input_value() for name, field in named.items()}
    return values | {"steps": page.locator("[name=steps]:checked").input_value()}


def draw(page: Page, pictures: int | None = None) -> Locator:
    """Draws, waits for that many pictures, and returns their links."""
    page.get_by_role("button", name="Draw", exact=True).click()
    links = page.locator("figure.card a[download]")
    if pictures is not None:
        expect(links).to_have_count(pictures)
        expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()
    return links


def clear_history(page: Page) -> None:
    """As there is no way back, it is asked twice."""
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="for good?").click()


def content(page: Page, link: Locator) -> bytes:
    """Of the file that a link saves."""
    with page.expect_download() as download:
        link.click()
    return download.value.path().read_bytes()


def from_api(url: str, **body: object) -> list[bytes]:
    """The same pictures, without the page."""
    answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60).raise_for_status()
    return [base64.b64decode(entry["b64_json"]) for entry in answer.json()["data"]]


def drop(page: Page, name: str, data: bytes, media_type: str) -> None:
    """As if the file had been dragged onto the page from elsewhere."""
    carried = page.evaluate_handle(
        """([name, text, type]) => {
            const content = Uint8Array.from(atob(text), each => each.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([content], name, { type }));
            return carried;
        }""",
        [name, base64.b64encode(data).decode(), media_type],
    )
    for event in ("dragover", "drop"):
        page.dispatch_event("main", event, {"dataTransfer": carried})
