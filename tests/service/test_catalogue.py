"""Names of models, without a server: what they lead to, and what a change leaves behind when it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.catalogue import Catalogue
from service.errors import ServiceError
from service.metrics import Metrics
from service.versions import Ledger, Line

OLD, NEW = (f"sha256:{digit * 64}" for digit in "12")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.json"


@pytest.fixture
def catalogue(file: Path) -> Catalogue:
    """Of two models that the settings name; the server has got to the first."""
    made = Catalogue({"first": "/a", "second": "/b"}, Ledger(file), Metrics())
    made.configure("first", OLD, "/a")
    return made


def published(line: Line, digest: str) -> Line:
    return line.published(line.new(digest, "/c"))


def test_no_name_is_the_first_model_and_a_number_or_digest_pins_its_version(catalogue: Catalogue) -> None:
    line, pinned = catalogue.find(None)
    assert (line.name, pinned) == ("first", None)
    for name in ("first@1", f"first@{OLD}"):
        assert catalogue.find(name) == (line, line.serving)


def test_a_model_that_comes_later_is_loading_and_any_other_unknown(catalogue: Catalogue) -> None:
    for name in ("second", "second@1"):
        with pytest.raises(ServiceError, match=f"'{name}' is loading") as raised:
            catalogue.find(name)
        assert raised.value.status == 503
    for name in ("third", "first@2", "third@1", ""):
        with pytest.raises(ServiceError, match="this server has: first, second") as raised:
            catalogue.find(name)
        assert raised.value.status == 404


def test_one_version_is_no_model(catalogue: Catalogue) -> None:
    with pytest.raises(ServiceError, match="give the name of the model"):
        catalogue.line("first@1")


def test_what_was_published_stays_until_the_settings_name_another_bundle(catalogue: Catalogue) -> None:
    asyncio.run(catalogue.put(published(catalogue.lines["first"], NEW)))
    catalogue.configure("first", OLD, "/a")
    assert catalogue.lines["first"].serving.digest == NEW
    third = "sha256:" + "3" * 64
    catalogue.configure("first", third, "/d")
    assert catalogue.lines["first"].serving.digest == third


def test_models_stand_in_the_order_of_the_settings_before_those_that_were_added(catalogue: Catalogue) -> None:
    asyncio.run(catalogue.put(published(catalogue.line_or_new("added"), NEW)))
    catalogue.configure("second", OLD, "/b")
    assert tuple(catalogue.lines) == catalogue.names == ("first", "second", "added")


def test_aliases_are_kept_with_the_models_and_follow_what_they_name(catalogue: Catalogue, file: Path) -> None:
    asyncio.run(catalogue.alias("stable", "first@1"))
    asyncio.run(catalogue.alias("newest", "first"))
    asyncio.run(catalogue.put(published(catalogue.lines["first"], NEW)))
    again = Catalogue({}, Ledger(file), Metrics())
    asyncio.run(again.read())
    for one in (catalogue, again):
        line = one.lines["first"]
        assert one.find("stable") == (line, line.versions[0])
        assert one.find("newest") == (line, None)
    asyncio.run(again.forget_alias("stable"))
    assert again.aliases == {"newest": "first"}


@pytest.mark.parametrize(
    ("alias", "model", "status"),
    [("first", "first", 409), ("second", "first", 409), ("a b", "first", 400), ("fine", "third", 404)],
)
def test_an_alias_that_cannot_be_changes_nothing(
    catalogue: Catalogue, file: Path, alias: str, model: str, status: int
) -> None:
    with pytest.raises(ServiceError) as raised:
        asyncio.run(catalogue.alias(alias, model))
    assert raised.value.status == status
    assert not catalogue.aliases
    assert not file.exists()


def test_a_new_model_takes_no_name_that_leads_elsewhere(catalogue: Catalogue) -> None:
    asyncio.run(catalogue.alias("mine", "first"))
    with pytest.raises(ServiceError, match="'mine' is an alias of 'first'"):
        catalogue.line_or_new("mine")
    with pytest.raises(ServiceError, match="Invalid 'model'"):
        catalogue.line_or_new("no name")


def test_a_change_that_the_disk_does_not_take_does_not_hold(catalogue: Catalogue, file: Path) -> None:
    before = dict(catalogue.lines)
    file.mkdir()  # which no file can replace
    with pytest.raises(ServiceError) as raised:
        asyncio.run(catalogue.put(published(catalogue.lines["first"], NEW)))
    assert raised.value.status == 507
    assert catalogue.lines == before
