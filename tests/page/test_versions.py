"""Versions on the page, by the real routes: on trial, promoted, withdrawn, rolled back, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

import service.bundles
from engines.bundle import Bundle
from engines.store import Store
from service.keys import add_key
from service.settings import Settings
from tests.service.bundles_on_disk import Loader, write_bundle
from tests.service.running import Running, run_server

from .acting import PROMPT, content, draw, fill, from_api, shown
from .conftest import Open
from .test_accessibility import problems, settle
from .test_errors import give

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A model whose bundles draw in different tints."""
    monkeypatch.setattr(service.bundles, "load_runtime", Loader())
    for seed, name in enumerate(("a", "b", "c")):
        write_bundle(tmp_path / name, seed)
    return Settings(data_dir=tmp_path / "data", log_level="warning", models={"m": str(tmp_path / "a")})


@pytest.fixture
def running(settings: Settings) -> Iterator[Running]:
    with run_server(settings, None) as server:
        yield server


def publish(running: Running, bundle: Path, share: float = 1.0, **headers: str) -> dict[str, Any]:
    body = {"bundle": str(bundle), "share": share, "reason": f"tried {bundle.name}"}
    answer = running.client.post("/v1/models/m/versions", json=body, headers=headers).raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def states(running: Running, **headers: str) -> list[tuple[str, str]]:
    listed = running.client.get("/v1/models/m/versions", headers=headers).json()["data"]
    return [(each["id"], each["state"]) for each in listed]


def versions(page: Page, url: str) -> Locator:
    page.goto(f"{url}/#/models")
    return page.get_by_role("region", name="Versions of m")


def row(of: Locator, version: str) -> Locator:
    return of.get_by_role("row").filter(has_text=version)


def test_a_canary_is_seen_promoted_and_rolled_back(visit: Open, running: Running, tmp_path: Path) -> None:
    published = publish(running, tmp_path / "b", 0.1)
    seen = versions(visit("about:blank"), running.url)
    expect(row(seen, "m@2")).to_contain_text("10 %")
    expect(row(seen, "m@2")).to_contain_text(published["digest"][7:19])
    expect(row(seen, "m@2")).to_contain_text("tried b")
    expect(row(seen, "m@1")).to_contain_text("90 %")
    seen.get_by_role("button", name="Promote the canary").click()
    expect(row(seen, "m@2")).to_contain_text("serving")
    assert states(running) == [("m@2", "serving"), ("m@1", "previous")]
    seen.get_by_role("button", name="Roll back").click()
    expect(row(seen, "m@2")).to_contain_text("retired")
    expect(row(seen, "m@1")).to_contain_text("serving")
    expect(seen.get_by_role("button", name="Roll back")).to_have_count(0)
    assert states(running) == [("m@2", "retired"), ("m@1", "serving")]


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_all_of_a_version_is_seen_and_still_a_table(
    visit: Open, running: Running, tmp_path: Path, width: int
) -> None:
    publish(running, tmp_path / "b", 0.1)
    page = visit("about:blank", viewport={"width": width, "height": 740})
    seen = versions(page, running.url)
    for text in ("m@2", "canary", "10", "tried b"):
        cell = row(seen, "m@2").get_by_text(text).first
        box = cell.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    hidden = "node => node.scrollWidth - node.clientWidth"
    for region in page.locator(".scroll:visible").all():
        assert region.evaluate(hidden) == 0, region.get_attribute("aria-label")
    expect(seen.get_by_role("rowheader", name="m@2")).to_be_visible()
    expect(row(seen, "m@2").get_by_role("cell")).to_have_count(5)
    expect(seen.get_by_role("columnheader")).to_have_count(6)


def test_a_canary_is_withdrawn(visit: Open, running: Running, tmp_path: Path) -> None:
    publish(running, tmp_path / "b", 0.5)
    seen = versions(visit("about:blank"), running.url)
    seen.get_by_role("button", name="Withdraw the canary").click()
    expect(row(seen, "m@2")).to_contain_text("retired")
    assert states(running) == [("m@2", "retired"), ("m@1", "serving")]


def test_what_another_has_changed_meanwhile_is_said_in_the_servers_words(
    visit: Open, running: Running, tmp_path: Path
) -> None:
    publish(running, tmp_path / "b", 0.5)
    seen = versions(visit("about:blank"), running.url)
    expect(seen.get_by_role("button", name="Promote the canary")).to_be_visible()
    running.client.post("/v1/models/m/rollback").raise_for_status()
    seen.get_by_role("button", name="Promote the canary").click()
    expect(seen.get_by_role("alert")).to_contain_text("has no canary to promote")


def test_the_student_of_a_job_is_published_and_rolled_back(
    visit: Open, settings: Settings, tmp_path: Path
) -> None:
    """Once by the button on the job's page; once by the job itself, and back from there."""
    digest = Bundle.load(tmp_path / "b").digest
    with run_server(settings.model_copy(update={"jobs_workers": False}), None) as running:
        jobs = running.server.config.app.state.service.jobs  # type: ignore[union-attr]
        Store(settings.store).add(tmp_path / "b", "b")
        kept = {"url": "s3://lab/artifacts/bundle", "bundle_digest": digest}

        def end(publish: object, **result: object) -> str:
            body = {"model": "shapes-sana", "training_file": "shapes:train", "publish": publish}
            job = running.client.post("/v1/distillation/jobs", json=body).json()["id"]
            lease = jobs.store.claim("the test", 600.0)[1]
            jobs.store.finish(lease, "succeeded", "done", result={"bundle": kept, "reasons": [], **result})
            return f"{running.url}/#/jobs/{job}"

        page = visit(end(None, published=False))
        expect(page.locator("main")).to_contain_text("s3://lab/artifacts/bundle")
        page.get_by_label("Serve it as").fill("m")
        page.get_by_label("With").select_option("0.1")
        page.get_by_role("button", name="Publish").click()
        expect(page.get_by_text("m@2 is canary")).to_be_visible()
        assert states(running) == [("m@2", "canary"), ("m@1", "serving")]
        running.client.post("/v1/models/m/promote").raise_for_status()
        page.goto(end({"model": "m"}, published=True, version={"id": "m@2"}))
        expect(page.get_by_role("link", name="m@2")).to_be_visible()
        expect(page.get_by_role("button", name="Publish")).to_have_count(0)
        seen = page.get_by_role("region", name="Versions of m")
        seen.get_by_role("button", name="Roll back").click()
        expect(row(seen, "m@1")).to_contain_text("serving")
        assert states(running) == [("m@2", "retired"), ("m@1", "serving")]
        settle(page)
        assert problems(page) == []


def test_only_an_administrator_changes_what_is_served(
    visit: Open, settings: Settings, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    plain, admin = add_key(keys, "alice"), add_key(keys, "root", admin=True)
    headers = {"Authorization": f"Bearer {admin}"}
    with run_server(settings.model_copy(update={"api_keys": keys}), None) as running:
        publish(running, tmp_path / "b", 0.5, **headers)
        page = visit(running.url)
        give(page, plain)
        seen = versions(page, running.url)
        seen.get_by_role("button", name="Promote the canary").click()
        expect(seen.get_by_role("alert")).to_contain_text("This key may not do that")
        expect(seen.get_by_role("alert")).to_contain_text("needs the key of an administrator")
        assert states(running, **headers)[0] == ("m@2", "canary")
        page.get_by_role("button", name="API key").click()
        give(page, admin)
        seen.get_by_role("button", name="Promote the canary").click()
        expect(row(seen, "m@2")).to_contain_text("serving")


def test_two_versions_side_by_side(visit: Open, running: Running, tmp_path: Path) -> None:
    """Pinned: neither a canary's share nor a promotion changes which is drawn."""
    publish(running, tmp_path / "b", 0.5)
    page = visit(running.url)
    fill(page, prompt=PROMPT, compare="Versions", steps=2, seed=5, n=2)
    expect(page.locator("select[name=version]")).to_have_value("m@1")
    expect(page.locator("select[name=other]")).to_have_value("m@2")
    expect(page.locator("select[name=other]")).to_contain_text("m@2, canary")
    settle(page)
    assert problems(page) == []
    draw(page, 4)
    drawn = []
    for column, version in enumerate(("m@1", "m@2")):
        of_column = page.locator(".column").nth(column)
        expect(of_column.get_by_role("heading")).to_have_text(version)
        links = of_column.locator("a[download]")
        drawn.append([content(page, links.nth(index)) for index in range(2)])
        expected = from_api(running.url, prompt=PROMPT, model=version, seed=5, n=2, num_inference_steps=2)
        assert drawn[-1] == expected
    assert drawn[0] != drawn[1]

    page.locator(".column").nth(1).locator(".frame").nth(1).click()
    viewer = page.get_by_role("dialog")
    expect(viewer).to_contain_text("m@2")
    digest = running.client.get("/v1/models/m@2").json()["digests"]["bundle"]
    expect(viewer).to_contain_text(digest[7:19])
    viewer.get_by_role("button", name="Use these settings").click()
    assert (shown(page)["seed"], shown(page)["n"]) == ("6", "1")
    expect(page.locator("select[name=other]")).to_have_value("m@2")


def test_versions_are_chosen_kept_in_the_history_and_missed_when_they_are_gone(
    visit: Open, running: Running, tmp_path: Path
) -> None:
    publish(running, tmp_path / "b")
    publish(running, tmp_path / "c", 0.2)
    page = visit(running.url)
    fill(page, prompt=PROMPT, compare="Versions", steps=1, seed=5, n=1)
    for count, (version, other) in enumerate((("m@2", "m@1"), ("m@3", "m@1")), start=1):
        page.locator("select[name=version]").select_option(version)
        page.locator("select[name=other]").select_option(other)
        draw(page, 2)
        expect(page.locator(".column").get_by_role("heading")).to_have_text([version, other])
        expect(page.locator(".thumb")).to_have_count(count)
    page.locator(".thumb").last.click()  # and not with the canary, as it would be by default
    expect(page.locator("select[name=version]")).to_have_value("m@2")
    expect(page.locator("select[name=other]")).to_have_value("m@1")
    running.client.post("/v1/models/m/rollback").raise_for_status()
    running.client.post("/v1/models/m@3/unload").raise_for_status()
    page.reload()
    page.locator(".thumb").first.click()
    expect(page.get_by_text("m@3 is no longer there")).to_be_visible()
    expect(page.locator("select[name=version]")).to_have_value("m@2")
    expect(page.locator("select[name=other]")).to_have_value("m@1")


def test_alone_a_version_has_nothing_beside_it(visit: Open, running: Running) -> None:
    page = visit(running.url)
    fill(page, compare="Versions", n=1)
    expect(page.get_by_text("There is only one version of m")).to_be_visible()
    draw(page, 1)


def test_memory_and_state_of_a_model(visit: Open, running: Running) -> None:
    page = visit(f"{running.url}/#/models")
    card = page.get_by_role("article", name="m")
    expect(card).to_contain_text("Memory")
    running.client.post("/v1/models/m/unload").raise_for_status()
    page.reload()
    expect(card.get_by_text("unloaded", exact=True)).to_be_visible()
    expect(card).not_to_contain_text("Memory")
