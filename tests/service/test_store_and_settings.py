"""Files behind URLs, and every setting from environment and flag."""

from __future__ import annotations

import os
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from pydantic import SecretStr

from engines.runtime import backend_names
from fewstep.cli import parser
from service import pictures
from service.app import create_app
from service.errors import ServiceError
from service.pictures import LIFETIME, MEDIA_TYPES, NAME, FileStore, to_file
from service.settings import Settings, as_variable, read_settings

from .fake_runtime import FakeRuntime
from .running import Running, run_server


def age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def test_a_url_lives_for_an_hour_and_not_longer(settings: Settings) -> None:
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        url = running.generate(response_format="url").json()["data"][0]["url"]
        file = settings.data_dir / "pictures" / url.rpartition("/")[2]
        age(file, LIFETIME - 60)
        assert httpx.get(url).status_code == 200
        age(file, LIFETIME + 1)
        gone = httpx.get(url)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "file_not_found")


def test_a_url_outlives_a_restart(settings: Settings) -> None:
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        url = running.generate(response_format="url").json()["data"][0]["url"]
        content = httpx.get(url).content
    with run_server(settings, {"fake": FakeRuntime()}) as again:
        path = httpx.URL(url).path
        assert again.client.get(path).content == content


def test_a_file_may_be_cached_but_not_guessed_at(shared: Running) -> None:
    url = shared.generate(response_format="url").json()["data"][0]["url"]
    headers = httpx.get(url).headers
    assert headers["cache-control"] == "private, max-age=3600, immutable"
    assert headers["x-content-type-options"] == "nosniff"
    assert len(re.sub(r"\.\w+$", "", url.rpartition("/")[2])) == 32, "192 random bits"


def test_urls_are_written_for_the_host_that_was_asked(shared: Running) -> None:
    answer = shared.client.post(
        "/v1/images/generations",
        json={"prompt": "a", "response_format": "url"},
        headers={"host": "pictures.example:8443"},
    )
    assert answer.json()["data"][0]["url"].startswith("http://pictures.example:8443/v1/images/files/")


def test_many_writers_and_readers_of_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps run in between; no name is given twice, no file is lost, old ones go."""
    monkeypatch.setattr(pictures, "SWEEP_INTERVAL", 0.0)
    store, old = FileStore(tmp_path), [FileStore(tmp_path).put(b"old", "png") for _ in range(20)]
    for name in old:
        age(tmp_path / name, LIFETIME + 1)

    def work(number: int) -> str:
        name = store.put(str(number).encode(), "webp")
        assert store.find(name).read_bytes() == str(number).encode()
        return name

    with ThreadPoolExecutor(16) as pool:
        names = list(pool.map(work, range(200)))
    assert len(set(names)) == 200
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_sweeping_leaves_foreign_files_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    age(tmp_path / "notes.txt", 10 * LIFETIME)
    FileStore(tmp_path).put(b"", "png")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_sweeps_are_not_made_for_every_file(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    first = store.put(b"a", "png")
    age(tmp_path / first, LIFETIME + 1)
    store.put(b"b", "png")
    assert (tmp_path / first).exists(), "the next sweep is a minute away"
    with pytest.raises(ServiceError, match="hour is over"):
        store.find(first)


@given(st.text(max_size=60))
def test_names_lead_to_files_of_the_store_only(name: str) -> None:
    assert (NAME.fullmatch(name) is None) or ("/" not in name and "." in name)
    with pytest.raises(ServiceError) as caught:
        FileStore(Path("/tmp")).find(name)
    assert caught.value.status == 404


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a" * 32 + ".png/..", "a" * 32 + ".PNG"])
def test_paths_are_no_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_text("secret")
    with pytest.raises(ServiceError, match="no such picture"):
        FileStore(tmp_path / "pictures").find(name)


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="FEWSTEP_DATA_DIR") as caught:
        FileStore(tmp_path / "file" / "pictures")
    assert caught.value.status == 500


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_files_hold_the_pixels(format: Any, seed: int, width: int, height: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    content = to_file(pixels, format, 100)
    from io import BytesIO

    with PillowImage.open(BytesIO(content)) as picture:
        assert PillowImage.MIME[picture.format or ""] == MEDIA_TYPES[format]
        read = np.asarray(picture.convert("RGB"))
    assert read.shape == pixels.shape
    if format == "png":
        assert np.array_equal(read, pixels)


EVERY_SETTING: dict[str, tuple[str, Any]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("8123", 8123),
    "models": ("a=/b/c,d", {"a": "/b/c", "d": "d"}),
    "data_dir": ("/srv/data", Path("/srv/data")),
    "backend": ("onnxruntime", "onnxruntime"),
    "threads": ("3", 3),
    "queue_limit": ("17", 17),
    "queue_seconds": ("7.5", 7.5),
    "auto_patience": ("2.5", 2.5),
    "embedding_cache_mb": ("8", 8),
    "result_cache_mb": ("9", 9),
    "stall_seconds": ("6.5", 6.5),
    "canary_seconds": ("5.5", 5.5),
    "max_wait_ms": ("2.5", 2.5),
    "max_body_bytes": ("4096", 4096),
    "body_seconds": ("2.5", 2.5),
    "max_prompt_chars": ("77", 77),
    "drain_seconds": ("1.5", 1.5),
    "provenance": ("false", False),
    "models_memory_mb": ("512", 512),
    "open_admin": ("true", True),
    "api_keys": ("/etc/keys", Path("/etc/keys")),
    "database_url": ("postgresql://a:b@c/d", SecretStr("postgresql://a:b@c/d")),
    "max_file_bytes": ("8192", 8192),
    "batch_max_lines": ("70", 70),
    "batch_queue_limit": ("7", 7),
    "jobs_queue_limit": ("7", 7),
    "jobs_teachers": ("shapes-sana, /models/*", ("shapes-sana", "/models/*")),
    "jobs_data": ("shapes, /pictures/*", ("shapes", "/pictures/*")),
    "webhook_hosts": ("a.example, *.b.example", ("a.example", "*.b.example")),
    "webhook_secret": ("whsec_x", SecretStr("whsec_x")),
    "webhook_attempts": ("3", 3),
    "cors_origins": ("https://a.example, https://b.example", ("https://a.example", "https://b.example")),
    "jobs_workers": ("false", False),
    "jobs_backend": ("ray", "ray"),
    "jobs_ray_address": ("http://10.0.0.1:8265", "http://10.0.0.1:8265"),
    "jobs_ray_gpus": ("0.5", 0.5),
    "jobs_devices": ("0, 1", ("0", "1")),
    "jobs_nice": ("3", 3),
    "jobs_threads": ("2", 2),
    "jobs_retries": ("5", 5),
    "jobs_lease_seconds": ("45.5", 45.5),
    "jobs_stop_seconds": ("7.5", 7.5),
    "jobs_keep_students": ("3", 3),
    "jobs_keep_checkpoints": ("true", True),
    "jobs_clip": ("a/clip", "a/clip"),
    "jobs_fid_features": ("a/network", "a/network"),
    "jobs_fid_statistics": ("/srv/coco.npz", "/srv/coco.npz"),
    "jobs_server": ("http://10.0.0.2:8000", "http://10.0.0.2:8000"),
    "jobs_server_key": ("secret", SecretStr("secret")),
    "artifacts_url": ("s3://bucket/jobs", "s3://bucket/jobs"),
    "log_format": ("json", "json"),
    "log_prompts": ("true", True),
    "log_level": ("debug", "debug"),
}


def test_no_setting_is_left_out_here() -> None:
    assert set(EVERY_SETTING) == set(Settings.model_fields)


@pytest.mark.parametrize("name", EVERY_SETTING)
def test_a_setting_comes_from_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, value = EVERY_SETTING[name]
    before = getattr(read_settings(), name)
    monkeypatch.setenv(f"FEWSTEP_{name.upper()}", written)
    assert getattr(read_settings(), name) == value != before


@pytest.mark.parametrize("name", sorted(set(EVERY_SETTING) - {"models"}))
def test_a_flag_wins_over_the_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep import serve

    written, value = EVERY_SETTING[name]
    seen: list[Settings] = []
    monkeypatch.setattr("service.server.serve", lambda settings: seen.append(settings) or 0)
    monkeypatch.setenv(f"FEWSTEP_{name.upper()}", "warning" if name == "log_level" else "2000")
    options = parser().parse_args(["serve", f"--{name.replace('_', '-')}", written])
    assert serve.serve(options) == 0
    assert getattr(seen[0], name) == value


def test_models_given_as_flags_take_the_place_of_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep import serve

    seen: list[Settings] = []
    monkeypatch.setattr("service.server.serve", lambda settings: seen.append(settings) or 0)
    for arguments, models in (
        ([], {"shapes-sana-sid": "shapes-sana-sid"}),
        (["--model", "x=/b/y", "--model", "/b/z"], {"x": "/b/y", "z": "/b/z"}),
    ):
        serve.serve(parser().parse_args(["serve", *arguments]))
        assert seen[-1].models == models
    assert list(seen[-1].models) == ["x", "z"], "the first one answers requests that name none"


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_settings()
    for name in EVERY_SETTING:
        monkeypatch.setenv(f"FEWSTEP_{name.upper()}", "")
    assert read_settings() == expected


@pytest.mark.parametrize("name", EVERY_SETTING)
def test_a_setting_comes_from_a_file(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As secrets are mounted: with a line break at the end."""
    written, value = EVERY_SETTING[name]
    (tmp_path / "secret").write_text(written + "\n")
    monkeypatch.setenv(f"FEWSTEP_{name.upper()}_FILE", str(tmp_path / "secret"))
    assert getattr(read_settings(), name) == value


def test_every_default_as_it_is_shown_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_settings()
    for name, field in Settings.model_fields.items():
        shown = as_variable(field.get_default(call_default_factory=True))
        monkeypatch.setenv(f"FEWSTEP_{name.upper()}", shown)
    assert read_settings() == expected


def test_a_variable_that_names_no_file_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_settings()
    monkeypatch.setenv("FEWSTEP_PORT_FILE", "")
    assert read_settings() == expected


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (lambda path: path.write_text("\n"), "it is empty"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file or directory"),
    ],
    ids=["empty", "folder", "missing"],
)
def test_a_secret_that_was_lost_is_said_and_does_not_become_the_default(
    lost: Any, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Jobs would quietly go to another database."""
    lost(tmp_path / "secret")
    monkeypatch.setenv("FEWSTEP_DATABASE_URL_FILE", str(tmp_path / "secret"))
    with pytest.raises(ServiceError) as caught:
        read_settings()
    wanted = "a file with the value of FEWSTEP_DATABASE_URL is wanted"
    assert str(caught.value) == f"FEWSTEP_DATABASE_URL_FILE: {tmp_path / 'secret'}: {reason}; {wanted}"


def test_a_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWSTEP_PORT_FILE", str(tmp_path / "nothing"))
    with pytest.raises(ServiceError, match=r"FEWSTEP_PORT_FILE.*nothing"):
        read_settings()
    (tmp_path / "nothing").write_bytes(b"\xff\xfe")
    with pytest.raises(ServiceError, match="FEWSTEP_PORT_FILE"):
        read_settings()


def test_a_file_with_a_bad_value_is_a_bad_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("http")
    monkeypatch.setenv("FEWSTEP_PORT_FILE", str(tmp_path / "port"))
    with pytest.raises(ServiceError, match="FEWSTEP_PORT"):
        read_settings()


def test_a_value_and_a_file_of_one_setting_are_too_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "port").write_text("1")
    monkeypatch.setenv("FEWSTEP_PORT_FILE", str(tmp_path / "port"))
    monkeypatch.setenv("FEWSTEP_PORT", "2")
    with pytest.raises(ServiceError, match="both set"):
        read_settings()


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("FEWSTEP_QUEU_LIMIT", "did you mean FEWSTEP_QUEUE_LIMIT?"),
        ("FEWSTEP_API_KEY_FILE", "did you mean FEWSTEP_API_KEYS_FILE?"),
        ("FEWSTEP_XYZZY", "fewstep serve --help"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, hint: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ServiceError) as caught:
        read_settings()
    assert variable in str(caught.value)
    assert hint in str(caught.value)


def test_a_data_folder_that_cannot_be_written_to_is_said_at_the_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root, who always may
    with pytest.raises(ServiceError, match="not writable for user"):
        create_app(settings, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "-1"),
        ("port", "http"),
        ("threads", "0"),
        ("queue_limit", "many"),
        ("max_wait_ms", "-1"),
        ("max_wait_ms", "nan"),
        ("max_wait_ms", "2000"),
        ("max_body_bytes", "10"),
        ("max_prompt_chars", "0"),
        ("drain_seconds", "-0.1"),
        ("models", ","),
        ("models", "=x"),
        ("log_level", "DEBUG!"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line_with_its_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FEWSTEP_{name.upper()}", value)
    with pytest.raises(ServiceError) as caught:
        read_settings()
    assert f"FEWSTEP_{name.upper()}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        (
            "backend",
            "cuda",
            "expected one of auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu",
        ),
        ("jobs_server", "api:8000", "expected an address like http://api:8000"),
        ("models", "a=b,a=c", "a name is given twice among a, a"),
        ("log_format", "xml", "Input should be 'text' or 'json'"),
        ("port", "99999", "Input should be less than or equal to 65535"),
    ],
)
def test_a_bad_setting_is_told_what_would_be_accepted(
    name: str, value: str, accepted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FEWSTEP_{name.upper()}", value)
    with pytest.raises(ServiceError) as caught:
        read_settings()
    assert str(caught.value).startswith(f"{name} (FEWSTEP_{name.upper()}): {accepted}")


@pytest.mark.parametrize("name", backend_names())
def test_every_backend_can_be_named(name: str) -> None:
    assert read_settings(backend=name).backend == name


def test_data_is_kept_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert read_settings().data_dir == tmp_path / "fewstep"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert read_settings().data_dir == Path("/home/someone/.local/share/fewstep")


def test_settings_cannot_change_under_a_running_server(settings: Settings) -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_pictures_are_kept_in_the_data_folder(settings: Settings) -> None:
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        running.generate(n=3, response_format="url")
        kept = list((settings.data_dir / "pictures").iterdir())
        assert len(kept) == 3
        assert all(stat.S_ISREG(path.stat().st_mode) for path in kept)
        running.generate(n=3)
        assert len(list((settings.data_dir / "pictures").iterdir())) == 3
