"""`fewstep jobs` against a real server: what is sent, what is shown, what is refused."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep.cli import parser
from fewstep.jobs.client import SHOWN_BYTES
from fewstep.jobs.request import override, recipe_of
from service.errors import ServiceError
from service.keys import add_key
from service.settings import Settings
from tests.service.fake_runtime import FakeRuntime
from tests.service.running import run_server

from .conftest import Jobs, Office, Said


def refusal(said: Said, code: int = 2) -> str:
    """The one line of it."""
    assert (said.code, said.out) == (code, ""), said
    [line] = said.err.strip().splitlines()
    return line


def only_job(office: Office) -> dict[str, Any]:
    [job] = office.running.client.get("/v1/distillation/jobs").json()["data"]
    found: dict[str, Any] = job
    return found


def files(office: Office) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = office.running.client.get("/v1/files").json()["data"]
    return found


def test_a_job_with_all_that_can_be_asked_for(office: Office, jobs: Jobs, tmp_path: Path) -> None:
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"prompt": "a red circle"}\n{"prompt": "a blue star"}\n')
    said = jobs(
        *("submit", "shapes-sana-demo", "--prompts", prompts, "--suffix", "mine", "--seed", 7),
        *("--set", "iterations=20", "optimizer.lr_fake=1e-3", "guidance=lsg", "quality=null"),
        *("--at-least", "accuracy=0.9", "psnr_db=40", "--at-most", "frechet_distance=60"),
        *("--worse-by", "accuracy=0.01", "--gate-images", 96, "--gate-seeds", "0,1", "--gate-steps", "1,2"),
        *("--publish", "small", "--canary", 0.2, "--canary-seconds", 5, "--precision", "fp16"),
        *("--metadata", "team=a", "run=b=c"),
    )
    assert (said.code, said.err) == (0, f"queued; fewstep jobs watch {said.out}")
    job = only_job(office)
    assert said.out.strip() == job["id"]
    assert (job["model"], job["suffix"], job["seed"], job["precision"]) == ("shapes-sana", "mine", 7, "fp16")
    assert job["metadata"] == {"team": "a", "run": "b=c"}
    sid = job["method"]["sid"]
    assert (sid["iterations"], sid["optimizer"]["lr_fake"], sid["quality"]) == (20, 0.001, None)
    assert sid["guidance"] == {"preset": "lsg"}
    assert job["gate"] == {
        "at_least": {"accuracy": 0.9, "psnr_db": 40.0},
        "at_most": {"frechet_distance": 60.0},
        "worse_by": {"accuracy": 0.01},
        "images": 96,
        "seeds": [0, 1],
        "steps": [1, 2],
    }
    assert job["publish"] == {"model": "small", "canary": 0.2, "canary_seconds": 5.0}
    [file] = files(office)
    assert (file["id"], file["filename"]) == (job["training_file"], "mine.jsonl")
    content = office.running.client.get(f"/v1/files/{file['id']}/content").text
    assert content == prompts.read_text()


def test_a_teacher_has_the_recipe_that_the_server_knows_for_it(office: Office, jobs: Jobs) -> None:
    assert jobs("submit", "shapes-sd3", "--json").code == 0
    job = only_job(office)
    assert (job["model"], job["training_file"], job["gate"]) == ("shapes-sd3", "shapes:train", None)
    assert job["method"]["sid"]["iterations"] > 100


def test_a_recipe_file_says_all_that_differs_from_the_published_run(
    office: Office, jobs: Jobs, tmp_path: Path
) -> None:
    """And takes nothing over from the shipped recipe of its teacher, as on the command line."""
    recipe = tmp_path / "mine.yaml"
    own = {"teacher": "shapes-sana", "prompts": "shapes:held-out", "seed": 5, "batch": 16}
    recipe.write_text(yaml.safe_dump({**own, "guidance": "lsg"}))
    said = jobs("submit", recipe, "--set", "guidance.teacher=2", "--json")
    assert said.code == 0
    job = json.loads(said.out)
    assert (job["training_file"], job["seed"]) == ("shapes:held-out", 5)
    assert job["method"]["sid"] == {"batch": 16, "guidance": {"preset": "lsg", "teacher": 2}}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nobody",), "There is no teacher 'nobody' here; known: shapes-sana"),
        (("missing.yaml",), "cannot read recipe missing.yaml: No such file"),
        (("list.yaml",), "expected `key: value` lines, got a list"),
        (("broken.yaml",), "is not valid YAML"),
        (("nameless.yaml",), "teacher is missing"),
        (("shapes-sana", "--set", "iteratons=3"), "Unknown parameter: 'method.sid.iteratons'"),
        (("shapes-sana", "--set", "batch"), "expected KEY=VALUE, e.g. --set batch=64"),
        (("shapes-sana", "--set", "batch=3", "batch.x=1"), "batch has no keys of its own"),
        (("shapes-sana", "--set", "seed=3"), "A job's seed is its field 'seed'"),
        (("shapes-sana", "--set", "iterations=NaN"), "Invalid 'method.sid.iterations'"),
        (("shapes-sana", "--prompts", "nowhere.txt"), "there are no prompts 'nowhere.txt': give a .txt or"),
        (("shapes-sana", "--prompts", "empty.txt"), "empty.txt is empty; expected a prompt a line"),
        (("shapes-sana", "--prompts", "."), "there are no prompts '.'"),
        (("shapes-sana", "--prompts", "bad.jsonl"), "Line 2 is not JSON"),
        (("shapes-sana", "--prompts", "binary.txt"), "Line 1 is not UTF-8 text"),
        (("shapes-sana", "--prompts", "blank.txt"), "The file holds no prompt"),
        (("shapes-sana", "--prompts", "large.txt"), "larger than 4096 bytes"),
        (("shapes-sana", "--prompts", "file-none"), "There is no file 'file-none'"),
        (("shapes-sana", "--canary", "0.5"), "give --publish NAME"),
        (("shapes-sana", "--at-least", "beauty=1"), "beauty is no measure; known: accuracy"),
        (("shapes-sana", "--at-least", "accuracy"), "expected MEASURE=VALUE, e.g. accuracy=0.9"),
        (("shapes-sana", "--at-least", "accuracy=high"), "expected a number, got 'high'"),
        (("shapes-sana", "--precision", "fp8"), "Invalid 'precision'"),
        (("shapes-sana", "--webhook", "http://a/"), "FEWSTEP_WEBHOOK_SECRET"),
        (("shapes-sana", "--suffix", "../x"), "Invalid 'suffix'"),
        (("shapes-sana", "--samples", "blank.txt"), "expected a folder, this is a file"),
    ],
)
def test_what_will_not_do_is_told_in_one_line_and_leaves_nothing(
    empty: Office,
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    (tmp_path / "nameless.yaml").write_text("batch: 3\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\nred circle\n{"prompt": "b"}\n')
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "large.txt").write_text("a red circle\n" * 1000)
    assert says in refusal(jobs("submit", *words))
    assert empty.store.counts() == {}
    assert files(empty) == [], "what was sent has been taken back"


def test_a_gigabyte_of_prompts_is_refused_before_it_has_been_sent(
    empty: Office, jobs: Jobs, tmp_path: Path
) -> None:
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    said = jobs("submit", "shapes-sana", "--prompts", huge)
    assert said.code == 2
    assert "The body is larger than 69632 bytes" in said.err.splitlines()[-1]
    assert files(empty) == []


def test_a_large_file_shows_how_much_of_it_has_been_sent(
    settings: Settings, jobs: Jobs, tmp_path: Path
) -> None:
    prompts = tmp_path / "many.txt"
    prompts.write_text("a red circle\n" * (SHOWN_BYTES // 12))
    roomy = settings.model_copy(update={"max_file_bytes": 64 << 20})
    with run_server(roomy, {"fake": FakeRuntime()}) as running:
        said = jobs("submit", "shapes-sana", "--prompts", prompts, "--url", running.url)
        size = prompts.stat().st_size
        assert said.code == 0
        assert f"sending many.txt, bytes {size}/{size}" in said.err
        [file] = running.client.get("/v1/files").json()["data"]
        assert file["bytes"] == size


def test_a_full_queue_is_no_wrong_request(office: Office, jobs: Jobs, tmp_path: Path) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a red circle\n")
    for _ in range(3):
        office.submit()
    line = refusal(jobs("submit", "shapes-sana", "--prompts", prompts), code=1)
    assert "3 jobs are waiting, and the queue holds 3" in line
    assert files(office) == []


def test_lists_go_beyond_a_page(office: Office, jobs: Jobs) -> None:
    assert jobs("list").out == "no jobs\n"
    made = [office.submit(suffix=f"n{number}", metadata={"team": "ab"[number % 2]}) for number in range(130)]
    found = json.loads(jobs("list", "--limit", 125, "--json").out)
    assert [job["id"] for job in found] == made[:4:-1]
    rows = jobs("list", "--metadata", "team=b", "--limit", 2).out.splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == [made[129], made[127]]
    assert re.search(r"\| n129 \| shapes-sana \| queued \| - \| - \| 20\d\d-", rows[2])


def test_one_job_is_shown(office: Office, jobs: Jobs) -> None:
    job = office.submit(metadata={"team": "a"})
    lease = office.take()
    office.progress(lease, 31, quality={"accuracy_1": 0.95})
    shown = jobs("show", job).out
    for text in ("running", "distill 31 %", "iteration 31/100", "12.5 images/s", "ETA 0:01:09", "team=a"):
        assert text in shown
    assert "accuracy_1 0.95" in shown
    assert "31 %" in jobs("list").out
    result = {"student": {"url": "/artifacts/student"}, "version": {"id": "small@2"}}
    office.succeed(lease, published=True, reasons=[], **result)
    ended = office.running.client.get(f"/v1/distillation/jobs/{job}").json()
    assert json.loads(jobs("show", job, "--json").out) == ended
    for text in ("succeeded", "served as small@2", "student: /artifacts/student"):
        assert text in jobs("show", job).out


def test_cancel_pause_and_resume(office: Office, jobs: Jobs) -> None:
    job = office.submit()
    assert jobs("pause", job).out == f"{job}: paused\n"
    assert jobs("resume", job).out == f"{job}: queued\n"
    lease = office.take()
    assert jobs("cancel", job).out.startswith(f"{job}: running, to cancel")
    office.store.finish(lease, "cancelled", "The job was cancelled.")
    for verb in ("cancel", "pause", "resume"):
        assert "has ended (cancelled)" in refusal(jobs(verb, job))


def test_all_events_the_oldest_first(office: Office, jobs: Jobs) -> None:
    job = office.submit()
    lease = office.take()
    for number in range(150):
        office.store.say(lease, f"step {number}")
    lines = jobs("events", job).out.splitlines()
    assert [line[20:] for line in lines] == [
        "The job waits for a runner.",
        "The job is running.",
        *(f"step {number}" for number in range(150)),
    ]
    assert json.loads(jobs("events", job, "--json").out.splitlines()[-1])["message"] == "step 149"


@pytest.mark.parametrize("verb", ["show", "watch", "cancel", "pause", "resume", "events"])
@pytest.mark.parametrize("job", ["ftjob-none", "../../models", "a b", ""])
def test_a_job_that_is_not_there(empty: Office, jobs: Jobs, verb: str, job: str) -> None:
    if (verb, job) == ("watch", ""):
        assert "has no jobs: `fewstep jobs submit` makes one" in refusal(jobs(verb, job))
    else:
        assert "There is no job" in refusal(jobs(verb, job))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9", "does not answer"),
        ("127.0.0.1:8000", "expected e.g. http://127.0.0.1:8000"),
        ("ftp://here", "expected e.g. http://127.0.0.1:8000"),
        ("http://a b:x", "expected e.g. http://127.0.0.1:8000"),
    ],
)
@pytest.mark.parametrize("task", ["list", "watch", "submit"])
def test_a_server_that_is_not_there(jobs: Jobs, url: str, says: str, task: str) -> None:
    words = ["shapes-sana"] if task == "submit" else []
    assert says in refusal(jobs(task, *words, "--url", url))


def test_something_else_at_the_address_is_no_server(jobs: Jobs) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.startswith("/page") else 404)
            self.end_headers()
            self.wfile.write(b"<p>a page</p>")

        def log_message(self, *_arguments: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}"
        assert "answers 404 at /v1/distillation/jobs; is it a fewstep" in refusal(jobs("list", "--url", url))
        assert "is no fewstep server" in refusal(jobs("list", "--url", f"{url}/page"))
        other.shutdown()


def test_keys(settings: Settings, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    plain, worker = add_key(keys, "alice"), add_key(keys, "bob", jobs=True)
    guarded = settings.model_copy(update={"api_keys": keys})
    with run_server(guarded, {"fake": FakeRuntime()}) as running:
        monkeypatch.setenv("FEWSTEP_URL", running.url)
        assert "by --api-key or FEWSTEP_KEY" in refusal(jobs("list"))
        assert "may not run jobs" in refusal(jobs("list", "--api-key", plain))
        monkeypatch.setenv("FEWSTEP_KEY", worker)
        assert jobs("list").out == "no jobs\n"
        assert jobs("submit", "shapes-sana").code == 0


def test_what_names_the_server_does_not_stop_one_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.settings import read_settings

    monkeypatch.setenv("FEWSTEP_URL", "http://elsewhere")
    monkeypatch.setenv("FEWSTEP_KEY", "fs-key")
    assert read_settings().port == 8000


def test_values_are_json_or_words() -> None:
    recipe: dict[str, Any] = {"guidance": "lsg"}
    for setting in (
        "batch=64",
        "ema=0.5",
        "quality=null",
        "lora=true",
        "size=[64,64]",
        "init=mine",
        "a.b.c=x=y",
    ):
        override(recipe, setting)
    override(recipe, "guidance.teacher=2")
    assert recipe == {
        "guidance": {"preset": "lsg", "teacher": 2},
        "batch": 64,
        "ema": 0.5,
        "quality": None,
        "lora": True,
        "size": [64, 64],
        "init": "mine",
        "a": {"b": {"c": "x=y"}},
    }
    for wrong in ("=3", "a..b=3", "batch"):
        with pytest.raises(ServiceError, match="expected KEY=VALUE"):
            override({}, wrong)


def test_each_shipped_recipe_can_be_named() -> None:
    own, recipe = recipe_of("sd3-medium")
    assert (own["teacher"], own["prompts"]) == (
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "prompts.txt",
    )
    assert recipe == {"recipe": "sd3-medium"}


def test_every_flag_has_help() -> None:
    group = next(action for action in parser()._actions if action.choices and "jobs" in action.choices)
    tasks = next(action for action in group.choices["jobs"]._actions if action.choices)  # type: ignore[index]
    assert set(tasks.choices) == {  # type: ignore[arg-type]
        *("submit", "list", "show", "watch", "events", "cancel", "pause", "resume")
    }
    for task in tasks.choices.values():  # type: ignore[union-attr]
        assert all(action.help for action in task._actions)
