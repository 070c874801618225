"""Versions of a model as values: what each change does, shares that are kept, and the file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ServiceError
from service.versions import KEPT, Ledger, Line, Served, lot


def grow(*shares: float) -> Line:
    """A line with one version a share, published in this order."""
    line = Line(name="m")
    for number, share in enumerate(shares):
        line = line.published(line.new(f"sha256:{number:064x}", f"/bundles/{number}"), share)
    return line


def states(line: Line) -> list[str]:
    return [version.state for version in line.versions]


def test_the_first_version_gets_everything_whatever_its_share() -> None:
    line = grow(0.1)
    assert (line.serving.id, line.serving.share) == ("m@1", 1.0)


def test_a_canary_is_promoted_and_taken_back() -> None:
    line = grow(1, 0.25)
    assert states(line) == ["serving", "canary"]
    assert [version.share for version in line.versions] == [0.75, 0.25]
    promoted = line.promoted()
    assert states(promoted) == ["previous", "serving"]
    assert [version.share for version in promoted.versions] == [0, 1]
    assert states(promoted.rolled_back()) == ["serving", "retired"]
    assert states(line.rolled_back()) == ["serving", "retired"]
    assert line.with_share(0.5).serving.share == 0.5


def test_a_newer_canary_takes_the_place_of_an_older_one() -> None:
    assert states(grow(1, 0.25, 0.5)) == ["serving", "retired", "canary"]
    assert states(grow(1, 0.25, 1)) == ["previous", "retired", "serving"]


@pytest.mark.parametrize("change", [Line.promoted, Line.rolled_back])
def test_what_cannot_be_changed_is_a_conflict_that_no_client_repeats(change: object) -> None:
    assert callable(change)
    with pytest.raises(ServiceError) as caught:
        change(grow(1))
    assert (caught.value.status, caught.value.headers["x-should-retry"]) == (409, "false")


ACTIONS = st.lists(st.sampled_from(["publish", "canary", "promote", "rollback"]), max_size=30)


@given(ACTIONS, st.floats(0.001, 0.999))
def test_whatever_is_done_one_version_serves_and_the_shares_add_up(actions: list[str], share: float) -> None:
    line = grow(1)
    for action in actions:
        with contextlib.suppress(ServiceError):
            if action in ("publish", "canary"):
                version = line.new("sha256:" + "0" * 64, "somewhere")
                line = line.published(version, share if action == "canary" else 1.0)
            else:
                line = line.promoted() if action == "promote" else line.rolled_back()
        assert states(line).count("serving") == 1
        assert states(line).count("canary") <= 1
        assert states(line).count("previous") <= 1
        assert sum(version.share for version in line.versions) == pytest.approx(1)
        assert all(
            (version.share > 0) == (version.state in ("serving", "canary")) for version in line.versions
        )
        numbers = [version.number for version in line.versions]
        assert numbers == sorted(set(numbers))


@pytest.mark.slow
@given(st.floats(0.02, 0.98), st.integers(0, 2**32))
def test_the_canary_gets_its_share_and_a_key_always_the_same_version(share: float, salt: int) -> None:
    line = grow(1, share)
    keys, count = [f"{salt} {number}" for number in range(2000)], 0
    for key in keys:
        version = line.route(key)
        count += version.state == "canary"
        assert line.route(key) is version
    # Six standard deviations of a fair draw.
    assert abs(count / len(keys) - share) < 6 * (share * (1 - share) / len(keys)) ** 0.5


def test_a_larger_share_keeps_who_had_the_canary_already() -> None:
    small, large = grow(1, 0.1), grow(1, 0.1).with_share(0.6)
    had = [str(key) for key in range(500) if small.route(str(key)).state == "canary"]
    assert had
    assert all(large.route(key).state == "canary" for key in had)


@given(st.text(), st.text(min_size=1))
def test_a_lot_is_a_number_below_one(salt: str, key: str) -> None:
    assert 0 <= lot(salt, key) < 1


def test_pins_by_number_and_digest() -> None:
    line = grow(1, 0.5)
    assert line.pinned("1") == line.versions[0]
    assert line.pinned(line.versions[1].digest) == line.versions[1]
    assert line.pinned("3") is None


def test_only_so_many_retired_versions_are_remembered() -> None:
    line = grow(*[1] * (KEPT + 10))
    assert states(line).count("retired") == KEPT
    assert line.serving.number == KEPT + 10


def test_the_file_brings_back_what_was_written(tmp_path: Path) -> None:
    served = Served(models={"m": grow(1, 0.5)}, aliases={"dall-e-3": "m"})
    ledger = Ledger(tmp_path / "new" / "models.json")
    assert ledger.read() == Served()
    ledger.write(served)
    assert ledger.read() == served
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["models.json"]


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text('{"models": ')
    with pytest.raises(ServiceError, match=r"models\.json.*move it away"):
        Ledger(tmp_path / "models.json").read()


def test_a_disk_that_does_not_take_it_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="not made") as caught:
        Ledger(tmp_path / "file" / "models.json").write(Served())
    assert caught.value.status == 507
