"""API keys: strangers stay out, limits hold, and nothing tells a wrong key from none."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.cli import main
from service.errors import ServiceError
from service.keys import Key, Keys, add_key, hashed, is_foreign
from service.settings import Settings

from .fake_runtime import FakeRuntime
from .running import run_server

ROUTE = "/v1/images/generations"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_only_who_has_a_key_is_served(settings: Settings, tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys", "alice")
    guarded = settings.model_copy(update={"api_keys": tmp_path / "keys"})
    with run_server(guarded, {"fake": FakeRuntime()}) as running:
        body = {"prompt": "a red circle", "response_format": "url"}
        refused = [
            httpx.post(running.url + ROUTE, json=body, headers=headers)
            for headers in (
                {},
                bearer("fs-wrong"),
                {"Authorization": secret},
                {"Authorization": "Bearer"},
            )
        ]
        for answer in refused:
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert len({answer.text for answer in refused}) == 1
        assert running.client.get("/v1/models").status_code == 401
        for path in ("/", "/docs", "/metrics", "/health/live", "/health/ready"):
            assert running.client.get(path).status_code == 200
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=secret, max_retries=0)
        data = client.images.generate(prompt="a", response_format="url").data
        assert data
        assert httpx.get(data[0].url or "").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="fs-other").models.list()


def test_a_stranger_cannot_make_the_server_read_a_body(settings: Settings, tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "alice")
    guarded = settings.model_copy(update={"api_keys": tmp_path / "keys", "max_body_bytes": 1024})
    with run_server(guarded, {"fake": FakeRuntime()}) as running:
        assert httpx.post(running.url + ROUTE, content=b"x" * 5000).status_code == 401


def test_a_limit_by_step_images(settings: Settings, tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys", "bob", limit=8)
    guarded = settings.model_copy(update={"api_keys": tmp_path / "keys"})
    with run_server(guarded, {"fake": FakeRuntime()}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=secret, max_retries=0)
        client.images.generate(prompt="a", n=2, quality="medium")
        client.images.generate(prompt="a", quality="high")
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt="a", quality="low")
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 8
        assert caught.value.response.headers["x-should-retry"] == "true"
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt="a", n=10)
        assert caught.value.response.headers["x-should-retry"] == "false"


@given(st.floats(1, 1000), st.lists(st.tuples(st.floats(0, 120), st.integers(1, 50)), max_size=40))
def test_no_minute_gives_more_than_two_minutes_worth(limit: float, uses: list[tuple[float, int]]) -> None:
    """A full minute's worth at once, and what grows back meanwhile; never more."""
    keys, key = Keys(None), Key(name="a", sha256="0" * 64, step_images_per_minute=limit)
    now, spent = 1000.0, list[tuple[float, int]]()
    for pause, count in uses:
        now += pause
        try:
            keys.spend(key, count, now)
        except ServiceError:
            assert count > limit or spent
        else:
            spent.append((now, count))
    for start, _ in spent:
        within = sum(count for moment, count in spent if start <= moment <= start + 60)
        assert within <= 2 * limit * (1 + 1e-9)


def test_waiting_as_long_as_told_is_enough_for_a_limit() -> None:
    keys, key = Keys(None), Key(name="a", sha256="0" * 64, step_images_per_minute=10)
    keys.spend(key, 10, now=0.0)
    with pytest.raises(ServiceError) as refused:
        keys.spend(key, 3, now=1.0)
    wait = int(refused.value.headers["Retry-After-Ms"]) / 1000
    keys.spend(key, 3, now=1.0 + wait + 1e-6)


def test_refused_work_is_not_charged() -> None:
    keys, key = Keys(None), Key(name="a", sha256="0" * 64, step_images_per_minute=10)
    keys.spend(key, 10, now=0.0)
    keys.refund(key, 10)
    keys.spend(key, 10, now=0.0)


def test_a_wrong_key_takes_as_long_as_none(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / "keys").open("a").write(
            Key(name=f"k{number}", sha256=hashed(str(number))).model_dump_json() + "\n"
        )
    keys = Keys(tmp_path / "keys")

    def seconds(authorization: str) -> float:
        started = time.perf_counter()
        with pytest.raises(ServiceError):
            keys.check(authorization)
        return time.perf_counter() - started

    pairs = [(seconds(""), seconds("Bearer fs-" + "x" * 43)) for _ in range(60)]
    ratio = statistics.median(missing for missing, _ in pairs) / statistics.median(
        wrong for _, wrong in pairs
    )
    assert 0.5 < ratio < 2


def test_the_file_holds_hashes_only(tmp_path: Path) -> None:
    file = tmp_path / "new" / "keys"
    first, second = add_key(file, "alice"), add_key(file, "bob", limit=5, admin=True)
    text = file.read_text()
    assert first not in text
    assert second not in text
    assert file.stat().st_mode & 0o077 == 0
    keys = Keys(file)
    assert keys.check(f"Bearer {first}").name == "alice"  # type: ignore[union-attr]
    found = keys.check(f"bearer {second}")
    assert found is not None
    assert (found.name, found.admin, found.step_images_per_minute) == ("bob", True, 5)
    with pytest.raises(ServiceError, match="has a key named 'alice'"):
        add_key(file, "alice")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "line 1"),
        ('{"name": "a"}', "sha256"),
        ('{"name": "a b", "sha256": "' + "0" * 64 + '"}', "name"),
        ('\n{"name": "a", "sha256": "' + "0" * 64 + '", "limits": 3}', "line 2: limits"),
    ],
)
def test_a_bad_file_is_told_by_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ServiceError, match=says):
        Keys(tmp_path / "keys")
    with pytest.raises(
        ServiceError, match=r"\(FEWSTEP_API_KEYS\): cannot read .*none: No such .*fewstep keys add"
    ):
        Keys(tmp_path / "none")


def works(keys: Keys, secret: str) -> bool:
    try:
        return keys.check(f"Bearer {secret}") is not None
    except ServiceError:
        return False


def test_keys_come_and_go_with_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    alice = add_key(file, "alice")
    keys = Keys(file)
    bob = add_key(file, "bob")
    assert (works(keys, alice), works(keys, bob)) == (True, False)  # not looked at again yet
    monkeypatch.setattr("service.keys.LOOK_SECONDS", 0.0)
    keys = Keys(file)
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "bob" in line))
    assert (works(keys, alice), works(keys, bob)) == (False, True)
    for spoil in (lambda: file.write_text('{"name": "eve"'), file.unlink):
        caplog.clear()
        spoil()
        assert [works(keys, bob) for _ in range(3)] == [True] * 3
        assert [record.message for record in caplog.records if "stay as they were" in record.message][
            1:
        ] == []
        assert "stay as they were" in caplog.text
    carol = add_key(file, "carol")
    assert (works(keys, bob), works(keys, carol)) == (False, True)


def test_an_emptied_file_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.keys.LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    secret, keys = add_key(file, "alice"), Keys(file)
    file.write_text("")
    assert not works(keys, secret)


def test_a_key_is_added_to_a_file_without_a_last_line_end(tmp_path: Path) -> None:
    first = add_key(tmp_path / "keys", "alice")
    (tmp_path / "keys").write_text((tmp_path / "keys").read_text().rstrip())
    second = add_key(tmp_path / "keys", "bob")
    names = [
        found.name
        for secret in (first, second)
        if (found := Keys(tmp_path / "keys").check(f"Bearer {secret}"))
    ]
    assert names == ["alice", "bob"]


def test_keys_are_made_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    assert main(["keys", "add", "alice", "--file", str(file), "--limit", "100"]) == 0
    secret = capsys.readouterr().out.strip()
    assert Keys(file).check(f"Bearer {secret}").step_images_per_minute == 100  # type: ignore[union-attr]
    assert main(["keys", "add", "alice", "--file", str(file)]) == 2
    assert "alice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("origin", "host", "foreign"),
    [
        (None, "127.0.0.1:8000", False),  # a program
        ("http://127.0.0.1:8000", "127.0.0.1:8000", False),  # this server's own page
        ("http://localhost:8000", "localhost:8000", False),
        ("http://[::1]:8000", "[::1]:8000", False),
        ("http://127.0.0.1:3000", "127.0.0.1:8000", True),  # another server's page on this machine
        ("http://localhost:8000", "127.0.0.1:8000", True),
        ("https://evil.example", "127.0.0.1:8000", True),
        ("http://evil.example:8000", "evil.example:8000", True),  # a name that was pointed at this machine
        ("http://127.0.0.1.evil.example:8000", "127.0.0.1.evil.example:8000", True),
        ("http://127.0.0.1:8000@evil.example", "127.0.0.1:8000", True),
        ("null", "127.0.0.1:8000", True),  # a sandboxed frame, a file
        ("", "", True),
        ("http://[::1", "[::1", True),
    ],
)
def test_whose_page_sends_a_request(origin: str | None, host: str, foreign: bool) -> None:
    assert is_foreign(origin, host) is foreign
