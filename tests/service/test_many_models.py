"""Many models and versions in one server: published, tried, taken back, loaded, unloaded, restarted."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import service.bundles
from engines.store import Store
from service.keys import add_key
from service.metrics import Metrics
from service.models import Models
from service.settings import Settings

from .bundles_on_disk import Loader, write_bundle
from .running import Running, run_server, wait_until


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr(service.bundles, "load_runtime", loader)
    return loader


@pytest.fixture
def digests(tmp_path: Path) -> dict[str, str]:
    return {name: write_bundle(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "c"))}


@pytest.fixture
def wanted(settings: Settings, tmp_path: Path, loader: Loader, digests: dict[str, str]) -> Settings:
    data, models = tmp_path / "data", {"m": str(tmp_path / "a")}
    return settings.model_copy(update={"data_dir": data, "models": models, "drain_seconds": 5.0})


def post(running: Running, path: str, **body: Any) -> httpx.Response:
    # Escapes carry what has no UTF-8 form.
    content = json.dumps(body) if body else None
    return running.client.post(
        f"/v1/models/{path}", content=content, headers={"content-type": "application/json"}
    )


def picture(running: Running, model: str | None = None, seed: int = 1, **body: Any) -> tuple[bytes, str, str]:
    """Its file, and the version and digest that drew it."""
    answer = running.generate(seed=seed, model=model, **body)
    assert answer.status_code == 200, answer.text
    content = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return content, answer.headers["x-model-version"], answer.headers["x-model-digest"]


def versions(running: Running, model: str = "m") -> dict[str, dict[str, Any]]:
    answer = running.client.get(f"/v1/models/{model}/versions").json()
    assert answer["object"] == "list"
    return {one["id"]: one for one in answer["data"]}


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def models_of(running: Running) -> Models:
    found: Models = running.server.config.app.state.service.models  # type: ignore[union-attr]
    return found


def test_a_version_comes_and_goes_and_the_old_pictures_come_back(
    wanted: Settings, tmp_path: Path, digests: dict[str, str]
) -> None:
    with run_server(wanted, None) as running:
        before = picture(running)
        assert before[1:] == ("m@1", digests["a"])
        answer = post(running, "m/versions", bundle=str(tmp_path / "b"), reason="better", gate={"fid": 3.5})
        version = answer.json()
        assert (version["id"], version["state"], version["share"]) == ("m@2", "serving", 1.0)
        assert (version["gate"], version["reason"], version["loaded"]) == ({"fid": 3.5}, "better", True)
        after = picture(running)
        assert after[0] != before[0]
        assert after[1:] == ("m@2", digests["b"])
        assert picture(running, "m@1") == before == picture(running, f"m@{digests['a']}")
        listed = running.client.get("/v1/models/m/versions").json()["data"]
        assert [(one["id"], one["state"]) for one in listed] == [("m@2", "serving"), ("m@1", "previous")]
        assert post(running, "m/rollback").status_code == 200
        assert picture(running) == before
        assert code(post(running, "m/rollback")) == (409, "no_previous_version")
        wait_until(lambda: not versions(running)["m@2"]["loaded"])
        assert code(running.generate(model="m@2")) == (404, "model_not_found")
        assert running.client.get("/v1/models").json()["data"][0]["version"] == "m@1"


def test_a_canary_draws_its_share_and_is_promoted(
    wanted: Settings, tmp_path: Path, digests: dict[str, str]
) -> None:
    with run_server(wanted, None) as running:
        assert code(post(running, "m/promote")) == (409, "no_canary")
        assert post(running, "m/versions", bundle=str(tmp_path / "b"), share=0.3).status_code == 200
        drawn = [picture(running, seed=seed)[1] for seed in range(40)]
        assert set(drawn) == {"m@1", "m@2"}
        assert drawn == [picture(running, seed=seed)[1] for seed in range(40)]
        assert running.metric("fewstep_version_requests_total", version="2") == 2 * drawn.count("m@2")
        assert running.metric("fewstep_model_version_share", version="2", digest=digests["b"]) == 0.3
        users = {picture(running, seed=seed, user="alice")[1] for seed in range(5)}
        assert len(users) == 1
        key = {"Idempotency-Key": "again"}
        body = {"prompt": "a", "model": "m"}
        answers = [running.client.post("/v1/images/generations", json=body, headers=key) for _ in range(2)]
        assert answers[1].headers["idempotent-replayed"] == "true"
        assert answers[0].headers["x-model-version"] == answers[1].headers["x-model-version"]
        # The same bundle again is the same canary with another share.
        assert post(running, "m/versions", bundle=str(tmp_path / "b"), share=0.6).json()["share"] == 0.6
        assert [one["state"] for one in post(running, "m/promote").json()["data"]] == ["serving", "previous"]
        assert {picture(running, seed=seed)[1] for seed in range(10)} == {"m@2"}


def test_streams_say_who_draws_them(wanted: Settings) -> None:
    with run_server(wanted, None) as running:
        answer = running.generate(stream=True)
        assert answer.headers["x-model-version"] == "m@1"
        assert "image_generation.completed" in answer.text


@pytest.mark.slow
def test_what_was_published_survives_a_restart_without_its_folder(
    wanted: Settings, tmp_path: Path, digests: dict[str, str]
) -> None:
    with run_server(wanted, None) as running:
        first = picture(running)
        post(running, "m/versions", bundle=str(tmp_path / "b"))
        post(running, "m/versions", bundle=str(tmp_path / "c"), share=0.5)
        post(running, "new/versions", bundle=str(tmp_path / "b"), reason="job 1")
        post(running, "aliases", alias="dall-e-3", model="m")
        known, second = versions(running), picture(running, "m@2")
    (tmp_path / "b").rename(tmp_path / "gone")
    (tmp_path / "c").rename(tmp_path / "gone too")
    assert Store(wanted.store).collect() == []
    with run_server(wanted, None) as running:
        again = versions(running)
        for id, version in known.items():
            assert {**version, "loaded": None} == {**again[id], "loaded": None}
        assert again["m@2"]["loaded"]
        assert again["m@3"]["loaded"]
        assert picture(running, "m@1") == first
        assert picture(running, "m@2") == second
        assert picture(running, "new")[2] == digests["b"]
        assert picture(running, "dall-e-3")[1] in ("m@2", "m@3")


@pytest.mark.slow
def test_settings_that_name_another_bundle_win_at_the_next_start(
    wanted: Settings, tmp_path: Path, digests: dict[str, str]
) -> None:
    with run_server(wanted, None) as running:
        post(running, "m/versions", bundle=str(tmp_path / "b"))
    with run_server(wanted, None) as running:
        assert picture(running)[2] == digests["b"]
    changed = wanted.model_copy(update={"models": {"m": str(tmp_path / "c")}})
    with run_server(changed, None) as running:
        assert picture(running)[1:] == ("m@3", digests["c"])
        post(running, "m/rollback")
        assert picture(running)[2] == digests["b"]


def test_a_bundle_that_cannot_be_served_changes_nothing(
    wanted: Settings, tmp_path: Path, loader: Loader, digests: dict[str, str]
) -> None:
    loader.broken.add(digests["b"])
    (tmp_path / "c" / "decoder.onnx").write_text("altered")
    with run_server(wanted, None) as running:
        before, kept = versions(running), picture(running)
        broken = post(running, "m/versions", bundle=str(tmp_path / "b"))
        assert broken.status_code == 500
        assert "no kernel for this device" in broken.json()["error"]["message"]
        assert code(post(running, "m/versions", bundle=str(tmp_path / "c"))) == (400, "bundle_unusable")
        assert code(post(running, "m/versions", bundle="nowhere")) == (400, "bundle_unusable")
        assert code(post(running, "m/versions", bundle="m", share=0)) == (400, "invalid_value")
        for odd in ({"gate": {"why": ["\ud800"]}}, {"reason": "\ud800"}):
            refused = post(running, "m/versions", bundle=str(tmp_path / "b"), **odd)
            assert code(refused) == (400, "invalid_value")
        assert code(post(running, "a b/versions", bundle=str(tmp_path / "b"))) == (400, "invalid_value")
        assert versions(running) == before
        assert picture(running) == kept
        assert Store(wanted.store).entries() == [] or not Store(wanted.store).entries()[0].names
    assert not (wanted.data_dir / "models.json").exists()


@pytest.mark.slow
def test_a_published_version_that_is_gone_at_the_next_start_gives_way(
    wanted: Settings, tmp_path: Path, loader: Loader, digests: dict[str, str]
) -> None:
    with run_server(wanted, None) as running:
        post(running, "m/versions", bundle=str(tmp_path / "b"))
        post(running, "m/versions", bundle=str(tmp_path / "c"), share=0.5)
    loader.broken |= {digests["b"], digests["c"]}
    with run_server(wanted, None) as running:
        assert {id: one["state"] for id, one in versions(running).items()} == {
            "m@1": "serving",
            "m@2": "retired",
            "m@3": "retired",
        }
        assert picture(running)[2] == digests["a"]


@pytest.mark.slow
def test_the_longest_unused_model_makes_room_and_comes_back(
    wanted: Settings, tmp_path: Path, loader: Loader
) -> None:
    folders = {name: tmp_path / f"large {name}" for name in ("x", "y", "z")}
    found = {name: write_bundle(folder, ord(name), 40) for name, folder in folders.items()}
    bound = {"models": {name: str(folder) for name, folder in folders.items()}, "models_memory_mb": 100}
    with run_server(wanted.model_copy(update=bound), None) as running:

        def states() -> dict[str, str]:
            return dict(running.client.get("/health/ready").json()["models"])

        assert states() == {"x": "ready", "y": "ready", "z": "unloaded"}
        card = running.client.get("/v1/models/z").json()
        assert (card["state"], card["backend"], card["steps"]) == ("unloaded", None, [1, 2, 4])
        first = picture(running, "x")
        with ThreadPoolExecutor(4) as pool:  # four ask, one load
            drawn = list(pool.map(lambda _: picture(running, "z"), range(4)))
        assert len(set(drawn)) == 1
        assert loader.count(found["z"]) == 1
        assert states() == {"x": "ready", "y": "unloaded", "z": "ready"}
        assert running.metric("fewstep_model_evictions_total", model="y") == 1
        picture(running, "y")
        assert states() == {"x": "unloaded", "y": "ready", "z": "ready"}
        assert picture(running, "x") == first
        assert running.metric("fewstep_model_memory_bytes") <= 100 * 2**20


@pytest.mark.slow
def test_what_cannot_fit_is_told_at_once_and_what_is_busy_stays(
    wanted: Settings, tmp_path: Path, loader: Loader
) -> None:
    write_bundle(tmp_path / "small", 8, 60)
    write_bundle(tmp_path / "huge", 9, 200)
    bound = wanted.model_copy(update={"models": {"m": str(tmp_path / "small")}, "models_memory_mb": 100})
    write_bundle(tmp_path / "other", 10, 60)
    with run_server(bound, None) as running, ThreadPoolExecutor() as pool:
        answer = post(running, "m/versions", bundle=str(tmp_path / "huge"))
        assert code(answer) == (507, "model_too_large")
        assert "100 MiB" in answer.json()["error"]["message"]
        runtime = loader.loaded[0]
        runtime.gate.clear()
        waiting = pool.submit(picture, running, "m")
        wait_until(lambda: running.metric("fewstep_inflight_images") == 1)
        refused = post(running, "n/load", bundle=str(tmp_path / "other"))
        assert code(refused) == (503, "memory_full")
        assert refused.headers["retry-after"] == "1"
        runtime.gate.set()
        assert waiting.result()[1] == "m@1"
        loaded = post(running, "n/load", bundle=str(tmp_path / "other"))
        assert (loaded.status_code, loaded.json()["state"]) == (200, "ready")


def test_unloading_waits_for_the_images_inside_and_a_request_loads_again(
    wanted: Settings, loader: Loader, digests: dict[str, str]
) -> None:
    with run_server(wanted, None) as running, ThreadPoolExecutor() as pool:
        loader.loaded[0].gate.clear()
        drawing = pool.submit(picture, running)
        wait_until(lambda: running.metric("fewstep_inflight_images") == 1)
        leaving = pool.submit(post, running, "m/unload")
        wait_until(lambda: models_of(running).hosted(models_of(running).catalogue.lines["m"].serving) is None)
        assert not leaving.done()
        loader.loaded[0].gate.set()
        first = drawing.result()
        assert leaving.result().json()["state"] == "unloaded"
        assert running.client.get("/health/ready").status_code == 200
        assert picture(running) == first
        assert loader.count(digests["a"]) == 2
        assert post(running, "m/load").json()["state"] == "ready"


def test_aliases_are_names_of_models_or_versions(wanted: Settings, tmp_path: Path) -> None:
    with run_server(wanted, None) as running:
        post(running, "m/versions", bundle=str(tmp_path / "b"))
        assert post(running, "aliases", alias="dall-e-3", model="m").json() == {
            "alias": "dall-e-3",
            "model": "m",
        }
        assert post(running, "aliases", alias="stable", model="m@1").status_code == 200
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        raw = client.images.with_raw_response.generate(prompt="a", model="dall-e-3")
        assert raw.headers["x-model-version"] == "m@2"
        assert raw.http_response.json()["model"] == "m"
        assert picture(running, "stable")[1] == "m@1"
        assert running.client.get("/v1/models/stable").json()["version"] == "m@1"
        assert [one["alias"] for one in running.client.get("/v1/models/aliases").json()["data"]] == [
            "dall-e-3",
            "stable",
        ]
        assert code(post(running, "aliases", alias="m", model="m")) == (409, "name_taken")
        assert code(post(running, "stable/versions", bundle=str(tmp_path / "b"))) == (409, "name_taken")
        assert code(post(running, "aliases", alias="x", model="none")) == (404, "model_not_found")
        assert running.client.delete("/v1/models/aliases/stable").status_code == 200
        assert code(running.generate(model="stable")) == (404, "model_not_found")
        assert code(running.client.delete("/v1/models/aliases/stable")) == (404, "alias_not_found")


def test_only_administrators_change_what_is_served(wanted: Settings, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    admin, user = add_key(file, "root", admin=True), add_key(file, "alice")
    with run_server(wanted.model_copy(update={"api_keys": file}), None, ready=False) as running:
        wait_until(lambda: running.client.get("/health/ready").status_code == 200)

        def answer(secret: str) -> int:
            headers = {"Authorization": f"Bearer {secret}"}
            return running.client.post("/v1/models/m/unload", headers=headers).status_code

        assert [answer(user), answer(admin), answer("wrong")] == [403, 200, 401]


def test_without_keys_a_web_page_or_another_machine_changes_nothing(wanted: Settings) -> None:
    with run_server(wanted, None) as running:
        page = {"Origin": "http://example.com"}
        assert code(running.client.post("/v1/models/m/unload", headers=page)) == (403, "admin_required")
        # As a proxy on this machine tells it.
        elsewhere = {"X-Forwarded-For": "192.0.2.7"}
        assert code(running.client.post("/v1/models/m/unload", headers=elsewhere)) == (403, "admin_required")
        assert running.client.post("/v1/models/m/unload").status_code == 200
    with run_server(wanted.model_copy(update={"open_admin": True}), None) as running:
        assert running.client.post("/v1/models/m/unload", headers=elsewhere).status_code == 200


def test_publishing_from_the_same_process(wanted: Settings, tmp_path: Path, digests: dict[str, str]) -> None:
    async def run() -> None:
        models = Models(wanted, Metrics())
        await models.start()
        version = await models.publish("m", str(tmp_path / "b"), share=0.5, gate={"passed": True})
        assert (version.state, version.share, version.digest) == ("canary", 0.5, digests["b"])
        assert (await models.publish("m", str(tmp_path / "b"), share=1.0)).state == "serving"
        assert await models.publish("m", str(tmp_path / "b")) == models.catalogue.lines["m"].serving
        assert (await models.rollback("m")).serving.digest == digests["a"]
        assert (await models.publish("fresh", str(tmp_path / "c"))).id == "fresh@1"
        async with models.use("fresh", "") as hosted:
            assert hosted.generator.runtime.bundle.digest == digests["c"]
        await models.drain(1)

    asyncio.run(run())


@pytest.mark.slow
def test_load_under_changing_versions_loses_no_request(wanted: Settings, tmp_path: Path) -> None:
    with run_server(wanted, None) as running, ThreadPoolExecutor(4) as pool:
        expected: dict[str, bytes] = {}
        stop = False

        def ask(seed: int) -> None:
            while not stop:
                content, version, digest = picture(running, seed=seed)
                assert expected.setdefault(f"{digest} {seed}", content) == content, version

        asking = [pool.submit(ask, seed) for seed in range(3)]
        for name in ("b", "c", "a", "b"):
            assert post(running, "m/versions", bundle=str(tmp_path / name), share=0.5).status_code == 200
            assert post(running, "m/promote").status_code == 200
        assert post(running, "m/rollback").status_code == 200
        stop = True
        for one in asking:
            one.result()
