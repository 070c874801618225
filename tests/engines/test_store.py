from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from engines import store as module
from engines.bundle import MANIFEST, Bundle
from engines.errors import EngineError
from engines.store import Store, find_bundle
from fewstep.cli import main
from fewstep.models import open_model


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "bundles")


@pytest.fixture
def other(bundle: Bundle, tmp_path: Path) -> Path:
    """A second bundle: the same files, another manifest."""
    folder = Path(shutil.copytree(bundle.path, tmp_path / "other"))
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, "name": "other"}))
    return folder


def named(store: Store) -> dict[tuple[str, ...], str]:
    return {entry.names: entry.digest for entry in store.entries()}


def test_a_bundle_is_found_by_name_and_by_digest(store: Store, bundle: Bundle) -> None:
    added = store.add(bundle.path)
    assert added.digest == bundle.digest
    for name in (bundle.manifest.name, bundle.digest):
        path = store.find(name)
        assert path is not None
        assert Bundle.load(path).digest == bundle.digest
    assert store.find("nothing") is None


def test_two_names_share_one_copy(store: Store, bundle: Bundle) -> None:
    store.add(bundle.path, "a")
    store.add(bundle.path, "b")
    assert named(store) == {("a", "b"): bundle.digest}
    (entry,) = store.entries()
    assert entry.size == sum(
        (bundle.path / file).stat().st_size for file in (MANIFEST, *bundle.manifest.files)
    )


def test_a_name_moves_and_what_it_left_is_garbage(store: Store, bundle: Bundle, other: Path) -> None:
    store.add(bundle.path, "a")
    moved = store.add(other, "a")
    assert named(store) == {("a",): moved.digest, (): bundle.digest}
    assert [entry.digest for entry in store.collect(dry_run=True)] == [bundle.digest]
    assert len(store.entries()) == 2
    assert [entry.digest for entry in store.collect()] == [bundle.digest]
    assert named(store) == {("a",): moved.digest}
    assert store.collect() == []


def test_forgetting_a_name_keeps_the_bundle_until_it_is_collected(store: Store, bundle: Bundle) -> None:
    store.add(bundle.path, "a")
    assert store.remove("a") == bundle.digest
    assert store.find("a") is None
    assert store.find(bundle.digest) is not None
    store.collect()
    assert store.find(bundle.digest) is None
    with pytest.raises(EngineError, match="no bundle 'a' in .*; it has none"):
        store.remove("a")


@pytest.mark.parametrize("name", ["", ".a", "a/b", "../a", "a b", "ä" * 3 + "/", "x" * 101])
def test_names_are_plain_file_names(store: Store, bundle: Bundle, name: str) -> None:
    with pytest.raises(EngineError, match="expected letters, digits"):
        module.check_name(name)
    assert store.find(name) is None


def test_a_shipped_name_is_taken(store: Store, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="'shapes-sana-sid' is that of a shipped bundle"):
        store.add(bundle.path, "shapes-sana-sid")
    assert store.entries() == []


def test_a_damaged_bundle_does_not_come_in(store: Store, other: Path) -> None:
    (other / "decoder.onnx").write_bytes(b"x")
    with pytest.raises(EngineError, match=r"decoder\.onnx does not match its digest"):
        store.add(other)
    assert store.entries() == []
    assert not list(store.folder.glob("objects/*"))


def test_a_bundle_that_was_not_expected_does_not_come_in(store: Store, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="sha256:0 was expected"):
        store.receive(lambda folder: _copy(bundle.path, folder), "a", "sha256:0")
    assert store.entries() == []


def test_young_transfers_are_left_alone_and_old_ones_removed(store: Store, bundle: Bundle) -> None:
    store.add(bundle.path, "a")
    young, old = store.folder / "objects" / ".young", store.folder / "objects" / ".old"
    young.mkdir()
    old.mkdir()
    day_ago = time.time() - 2 * module.ABANDONED_SECONDS
    os.utime(old, (day_ago, day_ago))
    store.collect()
    assert young.is_dir()
    assert not old.exists()


def test_a_transfer_that_ends_meanwhile_is_no_error(store: Store, bundle: Bundle) -> None:
    """A link to nothing is listed and has no time, as a folder that is renamed in between."""
    store.add(bundle.path, "a")
    (store.folder / "objects" / ".gone").symlink_to("nowhere")
    assert store.collect() == []


def test_collecting_waits_for_a_bundle_that_has_no_name_yet(
    store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between a bundle's appearance and its name's."""
    arrived, go_on, point = threading.Event(), threading.Event(), Store._point

    def slowly(self: Store, name: str, digest: str) -> None:
        arrived.set()
        assert go_on.wait(10)
        point(self, name, digest)

    monkeypatch.setattr(Store, "_point", slowly)
    adding = threading.Thread(target=store.add, args=(bundle.path, "a"))
    adding.start()
    assert arrived.wait(10)
    collecting = threading.Thread(target=store.collect)
    collecting.start()
    collecting.join(0.2)
    assert collecting.is_alive()
    go_on.set()
    adding.join()
    collecting.join()
    assert named(store) == {("a",): bundle.digest}


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot write .*file/bundles"):
        Store(tmp_path / "file" / "bundles").add(bundle.path)


def test_no_store_is_an_empty_one(store: Store) -> None:
    assert store.entries() == store.collect() == []
    assert not store.folder.exists()


def test_stored_bundles_go_by_name_everywhere(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", "list"]) == 0
    assert capsys.readouterr() == ("", f"no bundles in {tmp_path / 'bundles'}\n")
    assert main(["bundle", "add", str(bundle.path), "--name", "mine"]) == 0
    assert capsys.readouterr().out == f"mine {bundle.digest}\n"
    assert Bundle.load(find_bundle("mine", tmp_path / "bundles")).digest == bundle.digest
    assert open_model("mine").digest() == bundle.digest
    assert main(["bundle", "list"]) == 0
    assert capsys.readouterr().out.startswith(f"mine  {bundle.digest}  ")
    assert main(["bundle", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["names"] == ["mine"]
    assert main(["bundle", "verify"]) == 0
    assert "holds" in capsys.readouterr().out
    with pytest.raises(EngineError, match="or a name in .*bundles: mine"):
        find_bundle("nothing", tmp_path / "bundles")


def test_verify_names_what_does_not_hold(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_DATA_DIR", str(tmp_path))
    main(["bundle", "add", str(bundle.path), "--name", "mine"])
    path = Store(tmp_path / "bundles").find("mine")
    assert path is not None
    (path / "denoiser.onnx").write_bytes(b"")
    assert main(["bundle", "verify"]) == 1
    assert "denoiser.onnx does not match its digest" in capsys.readouterr().out
    assert main(["bundle", "remove", "mine"]) == 0
    assert main(["bundle", "gc"]) == 0
    assert "1 bundle, " in capsys.readouterr().out


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def test_a_damaged_bundle_gives_way_to_a_whole_one(store: Store, bundle: Bundle) -> None:
    file = store.add(bundle.path, "a").path / "decoder.onnx"
    file.write_bytes(file.read_bytes()[:-3])
    assert Bundle.load(store.add(bundle.path, "b").path).digest == bundle.digest
    assert named(store) == {("a", "b"): bundle.digest}
    assert len(list(store.folder.glob("objects/*"))) == 1
    assert not list(store.folder.glob("objects/.*"))
