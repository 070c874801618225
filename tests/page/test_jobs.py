"""A job on the page, from the form to its end; the test does at the job store what a runner does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from service.settings import Settings
from tests.e2e.conftest import Server
from tests.service.fake_runtime import FakeRuntime
from tests.service.jobs.office import Office
from tests.service.running import run_server

from .conftest import Open
from .test_accessibility import problems, settle
from .test_errors import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Office]:
    settings = Settings(data_dir=tmp_path, log_level="warning", jobs_workers=False)
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        yield Office(running)


def submit(page: Page, place: Office, **fields: str) -> None:
    page.goto(f"{place.running.url}/#/jobs")
    page.get_by_role("link", name="New job").click()
    for label, text in fields.items():
        page.get_by_label(label.replace("_", " ")).fill(text)
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".badge").first).to_have_text("queued")


def test_a_job_from_the_form_to_its_end(place: Office, visit: Open) -> None:
    page = visit("about:blank")
    submit(page, place, Name_of_the_student="mine", Iterations="100", Learning_rate="0.001", Seed="7")
    expect(page.get_by_role("heading", name="mine")).to_be_visible()
    expect(page.locator(".badge").first).to_have_text("queued")
    [job] = place.running.client.get("/v1/distillation/jobs").json()["data"]
    assert (job["model"], job["training_file"], job["seed"], job["suffix"]) == (
        "shapes-sana",
        "shapes:train",
        7,
        "mine",
    )
    assert job["method"]["sid"]["iterations"] == 100
    assert job["method"]["sid"]["optimizer"]["lr_generator"] == 0.001
    assert job["gate"]["at_least"] == {"accuracy": 0.9}

    lease = place.take()
    for iteration in (10, 20, 30):
        place.progress(lease, iteration)
    place.checkpoint(lease, 20, "red")
    place.checkpoint(lease, 30, "blue")
    place.progress(lease, 31, sample="samples/30.png")
    figures = {"iteration": 31, "accuracy_1": 0.8, "accuracy_4": 0.9, "frechet_4": 40.2, "score": 1.5}
    place.store.say(lease, "quality at iteration 31", kind="metrics", data=figures)
    expect(page.get_by_text("31 of 100")).to_be_visible()
    expect(page.get_by_role("img", name="Losses; latest: generator")).to_be_visible()
    expect(page.get_by_role("img", name="accuracy; latest: 1 step 80 %, 4 steps 90 %")).to_be_visible()
    expect(page.get_by_role("img", name="Fréchet distance; latest: 4 steps 40.2")).to_be_visible()
    place.store.say(lease, "something to know", level="warn")
    expect(page.locator(".log .warn")).to_contain_text("something to know")

    slider = page.get_by_label("Checkpoint")
    expect(page.get_by_role("img", name="What the student drew at iteration 30")).to_be_visible()
    slider.press("ArrowLeft")
    expect(page.get_by_role("img", name="What the student drew at iteration 20")).to_be_visible()
    settle(page)
    assert problems(page) == []

    check = {"measure": "accuracy", "steps": 4, "value": 0.8, "bound": 0.9, "holds": False}
    verdict = {"passed": False, "checks": [check]}
    bundle = {
        "url": "/srv/fewstep/artifacts/bundle",
        "digest": "sha256:" + "2" * 64,
        "bundle_digest": "sha256:" + "3" * 64,
    }
    result = {"verdict": verdict, "published": False, "reasons": ["accuracy is 0.8"], "bundle": bundle}
    place.store.finish(lease, "succeeded", "The student is not published.", result=result)
    expect(page.locator(".badge").first).to_have_text("succeeded")
    expect(page.get_by_text("The gate does not hold")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="accuracy")).to_contain_text("no")
    expect(page.get_by_role("row").filter(has_text="Accuracy")).to_contain_text("80.0 %")
    expect(page.locator("main")).not_to_contain_text("/srv/fewstep")
    expect(page.get_by_role("button", name="Publish")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    page.goto(f"{place.running.url}/#/jobs")
    expect(page.get_by_role("link", name="mine")).to_contain_text("succeeded")


def test_the_form_shows_what_each_teachers_recipe_says(place: Office, visit: Open) -> None:
    page = visit(f"{place.running.url}/#/jobs/new")
    hints = [page.get_by_label(name) for name in ("Iterations", "Batch", "Learning rate")]
    for teacher, accuracy, said in (
        ("shapes-sana", "0.9", ("360", "48", "0.0001")),
        ("shapes-flux", "0.8", ("300", "48", "0.0002")),
        ("lab/own", "", ("as in its recipe",) * 3),
    ):
        page.get_by_label("Teacher").fill(teacher)
        for field, hint in zip(hints, said):
            expect(field).to_have_attribute("placeholder", hint)
            expect(field).to_have_value("")
        expect(page.get_by_label("Accuracy of at least")).to_have_value(accuracy)
    share = page.get_by_label("On trial with a share of")
    expect(share).to_be_disabled()
    page.get_by_label("Then serve it as").fill("mine")
    expect(share).to_be_enabled()
    page.get_by_role("link", name="All jobs").click()
    page.go_back()
    expect(page.get_by_label("Then serve it as")).to_have_value("mine")


def test_what_has_the_focus_keeps_it_while_the_job_goes_on(place: Office, visit: Open) -> None:
    page = visit("about:blank")
    submit(page, place, Name_of_the_student="steady")
    lease = place.take()
    place.progress(lease, 10)
    expect(page.get_by_text("10 of 100")).to_be_visible()
    page.get_by_role("button", name="Pause").focus()
    place.progress(lease, 11)
    expect(page.get_by_text("11 of 100")).to_be_visible()
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    chart = page.get_by_role("img", name="Losses; latest")
    chart.focus()
    chart.press("ArrowLeft")
    reading = page.locator(".chart output").first
    expect(reading).to_have_text("11: generator 0.0909, fake 0.5")
    place.progress(lease, 12)
    expect(page.get_by_text("12 of 100")).to_be_visible()
    expect(reading).to_have_text("11: generator 0.0909, fake 0.5")
    chart.blur()
    expect(page.get_by_role("img", name="Losses; latest: generator 0.0833")).to_be_visible()
    page.get_by_role("link", name="All jobs").click()
    page.get_by_role("link", name="steady").focus()
    place.progress(lease, 50)
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")
    expect(page.get_by_role("link", name="steady")).to_be_focused()


def test_pause_resume_and_cancel(place: Office, visit: Open) -> None:
    page = visit("about:blank")
    submit(page, place, Name_of_the_student="stopped")
    lease = place.take()
    place.progress(lease, 5)
    expect(page.locator(".badge").first).to_have_text("running")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".badge").first).to_have_text("running, to pause")
    assert place.progress(lease, 6) == "pause"
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".badge").first).to_have_text("running, to cancel")
    assert place.progress(lease, 7) == "cancel"
    place.store.finish(lease, "cancelled", "The job was cancelled.")
    expect(page.locator(".badge").first).to_have_text("cancelled")


def test_a_waiting_job_is_paused_and_resumed_at_once(place: Office, visit: Open) -> None:
    page = visit("about:blank")
    submit(page, place, Name_of_the_student="later")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".badge").first).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".badge").first).to_have_text("queued")


def test_prompts_of_ones_own(place: Office, visit: Open) -> None:
    page = visit(f"{place.running.url}/#/jobs/new")
    page.locator("select[name=training_file]").select_option("file")
    prompts = b'{"prompt": "a red circle"}\n{"prompt": "a blue star"}\n'
    page.locator("input[type=file]").set_input_files(
        {"name": "mine.jsonl", "mimeType": "application/jsonl", "buffer": prompts}
    )
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".badge").first).to_have_text("queued")
    [job] = place.running.client.get("/v1/distillation/jobs").json()["data"]
    assert place.running.client.get(f"/v1/files/{job['training_file']}/content").content == prompts


def test_what_the_server_does_not_take_is_said_and_kept(place: Office, visit: Open) -> None:
    page = visit(f"{place.running.url}/#/jobs/new")
    page.get_by_label("Teacher").fill("nobody/knows")
    page.get_by_label("Teacher").blur()  # as when somebody goes on to the next field
    page.locator("select[name=training_file]").select_option("shapes:train")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no teacher 'nobody/knows' here")
    assert page.get_by_label("Teacher").input_value() == "nobody/knows"


def test_a_failure_is_shown_with_its_reason(place: Office, visit: Open) -> None:
    page = visit("about:blank")
    submit(page, place, Name_of_the_student="unlucky")
    place.fail(place.take())
    expect(page.get_by_role("alert")).to_contain_text("the disk is full")


def test_a_job_that_is_not_there(place: Office, visit: Open) -> None:
    page = visit(f"{place.running.url}/#/jobs/ftjob-nothing")
    expect(page.get_by_role("alert")).to_be_visible()


def test_a_server_without_jobs_says_so(visit: Open, server: Server) -> None:
    page = visit("about:blank")
    refusal = {
        "error": {"message": "There is nothing here.", "type": "x", "param": None, "code": "not_found"}
    }
    page.route("**/v1/distillation/jobs?**", lambda route: route.fulfill(status=404, json=refusal))
    page.goto(f"{server.url}/#/jobs")
    expect(page.get_by_text("Not available on this server")).to_be_visible()


def test_a_full_queue_is_said_and_the_form_kept(visit: Open, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, log_level="warning", jobs_queue_limit=1)
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        page = visit("about:blank")
        submit(page, Office(running), Name_of_the_student="first")
        page.goto(f"{running.url}/#/jobs/new")
        page.get_by_label("Name of the student").fill("second")
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("alert")).to_contain_text("1 jobs are waiting, and the queue holds 1")
        assert page.get_by_label("Name of the student").input_value() == "second"


def test_a_job_is_followed_over_a_server_that_goes_and_comes_back(visit: Open, tmp_path: Path) -> None:
    settings, port = Settings(data_dir=tmp_path, log_level="warning"), free_port()
    page = visit("about:blank")
    with run_server(settings, {"fake": FakeRuntime()}, port=port) as running:
        submit(page, Office(running), Name_of_the_student="steady")
        lease = Office(running).take()
        Office(running).store.say(lease, "before")
        expect(page.locator(".log")).to_contain_text("before")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    with run_server(settings, {"fake": FakeRuntime()}, port=port) as running:
        place = Office(running)
        place.progress(lease, 42)
        place.store.say(lease, "after")
        expect(page.locator(".log")).to_contain_text("after")
        expect(page.get_by_text("42 of 100")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.locator(".log li").filter(has_text="before")).to_have_count(1)
        place.store.finish(lease, "cancelled", "The job was cancelled.")
        expect(page.locator(".badge").first).to_have_text("cancelled")
