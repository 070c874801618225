"""Takes the pictures of the page that the documents show: `python -m tests.page.screenshots [SCENE …]`.

They come out as here where the typeface Inter is installed (Debian: fonts-inter).
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.conftest import start_server, stop_server

from .acting import draw, fill
from .conftest import CHROMIUM, FLAGS

DOCS = Path(__file__).parents[2] / "docs"
PROMPT = "a red circle left of a blue star on a white background"


def save(page: Page, name: str, whole: bool = False) -> None:
    """256 colours are enough for a page, and a third of the bytes."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    few = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(DOCS / f"page-{name}.png", optimize=True)
    print(f"docs/page-{name}.png, {(DOCS / f'page-{name}.png').stat().st_size / 1000:.0f} kB")


def opened(browser: Browser, url: str, scheme: str, width: int = 1280, height: int = 800) -> Page:
    page = browser.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": height},
        locale="en-GB",
    ).new_page()
    page.goto(url)
    page.locator(".composer").wait_for()
    return page


def playground(browser: Browser, url: str) -> None:
    page = opened(browser, url, "light")
    for prompt, seed in ((PROMPT, 3), ("a yellow triangle above a purple square on a black background", 21)):
        fill(page, prompt=prompt, seed=seed, n=8, steps=4)
        draw(page, 8)
    page.get_by_text("As code").scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, 0)")
    save(page, "playground")
    phone = opened(browser, url, "dark", 390, 844)
    fill(phone, prompt=PROMPT, seed=3, n=6)
    draw(phone, 6)
    save(phone, "phone")


def compare(browser: Browser, url: str) -> None:
    page = opened(browser, url, "dark")
    fill(page, prompt=PROMPT, compare="Steps", seed=1, n=2)
    draw(page, 6)
    save(page, "compare")


def panels(browser: Browser, url: str) -> None:
    page = opened(browser, url, "light")
    page.goto(f"{url}/#/models")
    page.locator(".model").wait_for()
    save(page, "models")
    page.goto(f"{url}/#/health")
    page.locator(".tile").first.wait_for()
    for index in range(40):
        body = {"prompt": f"{PROMPT} {index % 7}", "n": 1 + index % 4, "num_inference_steps": 1 << index % 3}
        page.request.post(f"{url}/v1/images/generations", data=body)
        page.wait_for_timeout(250)
    save(page, "health")


RECIPE = {
    "iterations": 24,
    "batch": 16,
    "quality_every": 6,
    "quality_images": 32,
    "samples_every": 6,
    "checkpoint_every": 6,
}


def jobs(browser: Browser, url: str) -> None:
    """A real job, from the request to the model that is served: minutes on two idle cores."""
    request = {
        "model": "shapes-sana",
        "training_file": "shapes:train",
        "method": {"type": "sid", "sid": RECIPE},
        "suffix": "first-try",
        "gate": {"images": 32, "at_least": {"accuracy": 0.5, "psnr_db": 40}},
        "publish": {"model": "shapes-sana-sid", "canary": 0},
    }
    page = opened(browser, url, "light")
    answer = page.request.post(f"{url}/v1/distillation/jobs", data=request)
    job = answer.json()
    page.goto(f"{url}/#/jobs/{job['id']}")
    page.locator(".badge").first.filter(has_text="succeeded").wait_for(timeout=3_600_000)
    slider = page.get_by_label("Checkpoint")
    slider.fill(slider.get_attribute("max") or "0")
    slider.blur()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    save(page, "job", whole=True)


SCENES = (playground, compare, panels, jobs)


def main(names: list[str]) -> None:
    """
    Args:
        names: Of the scenes to be taken; none for all.
    """
    wanted = [scene for scene in SCENES if not names or scene.__name__ in names]
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        server = start_server(Path(data), "--jobs-nice", "0")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            for scene in wanted:
                scene(browser, server.url)
        finally:
            browser.close()
            stop_server(server)


if __name__ == "__main__":
    main(sys.argv[1:])
