from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from engines import transfer
from engines.bundle import MANIFEST, Bundle
from engines.errors import EngineError
from engines.store import Store
from engines.transfer import pull, push, where_is_hub
from fewstep.cli import main

PLACE = "memory://models/tiny"


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "bundles")


def quiet(line: str) -> None:
    pass


def test_what_is_pushed_can_be_pulled(memory: Any, store: Store, bundle: Bundle) -> None:
    push(bundle, PLACE, quiet)
    assert pull(PLACE, store, "mine", bundle.digest, quiet).digest == bundle.digest
    assert store.find("mine") == store.find(bundle.digest)


def test_the_manifest_comes_last_and_an_older_one_goes_first(
    memory: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(bundle, PLACE, quiet)
    sent: list[str] = []
    put = MemoryFileSystem.put_file

    def watched(self: Any, source: str, target: str, *rest: Any, **named: Any) -> Any:
        sent.append(target.rpartition("/")[2])
        assert not self.exists(f"/models/tiny/{MANIFEST}")
        return put(self, source, target, *rest, **named)

    monkeypatch.setattr(MemoryFileSystem, "put_file", watched)
    push(bundle, PLACE, quiet)
    assert sent[-1] == MANIFEST
    assert len(sent) == len(bundle.manifest.files) + 1


def test_a_file_that_arrives_short_is_noticed(
    memory: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryFileSystem, "size", lambda self, path: 3)
    with pytest.raises(EngineError, match=r"decoder\.onnx has 3 bytes there"):
        push(bundle, PLACE, quiet)
    assert not memory.exists(f"/models/tiny/{MANIFEST}")


def test_an_altered_file_is_refused_and_the_store_stays_as_it_was(
    memory: Any, store: Store, bundle: Bundle
) -> None:
    push(bundle, PLACE, quiet)
    memory.pipe_file("/models/tiny/decoder.onnx", b"altered")
    with pytest.raises(EngineError, match=r"^memory://models/tiny: decoder\.onnx does not match its digest"):
        pull(PLACE, store, say=quiet)
    assert store.entries() == []
    assert not list(store.folder.glob("objects/*"))


def test_a_file_that_is_missing_there_is_named(memory: Any, store: Store, bundle: Bundle) -> None:
    push(bundle, PLACE, quiet)
    memory.rm("/models/tiny/decoder.onnx")
    with pytest.raises(EngineError, match=r"tiny: decoder\.onnx is missing there; push the bundle again"):
        pull(PLACE, store, say=quiet)
    assert not list(store.folder.glob("objects/*"))


def test_a_name_that_cannot_be_used_is_refused_before_anything_is_fetched(
    memory: Any, store: Store, bundle: Bundle
) -> None:
    push(bundle, PLACE, quiet)
    content = json.loads((bundle.path / MANIFEST).read_text())
    memory.pipe_file(f"/models/tiny/{MANIFEST}", json.dumps({**content, "name": "shapes-sana-sid"}).encode())
    fetched: list[str] = []
    with pytest.raises(EngineError, match="name 'shapes-sana-sid' is that of a shipped bundle"):
        pull(PLACE, store, say=fetched.append)
    assert fetched == []


@pytest.mark.parametrize("method", ["get_file", "put_file"])
def test_a_full_disk_is_named_by_the_file_that_did_not_fit(
    memory: Any, store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def full(self: Any, source: str, target: str, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, target)

    if method == "get_file":
        push(bundle, PLACE, quiet)
    monkeypatch.setattr(MemoryFileSystem, method, full)
    with pytest.raises(EngineError, match=r"^cannot write .*/decoder\.onnx: No space left on device$"):
        push(bundle, PLACE, quiet) if method == "put_file" else pull(PLACE, store, say=quiet)
    assert not list(store.folder.glob("objects/*"))


def test_a_place_with_something_else_is_not_pushed_into(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(EngineError, match=r"is not a bundle, it has notes\.txt: give a new place"):
        push(bundle, str(tmp_path), quiet)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_push_that_was_cut_off_can_be_repeated(bundle: Bundle, tmp_path: Path) -> None:
    place = tmp_path / "place"
    push(bundle, str(place), quiet)
    (place / MANIFEST).unlink()
    (place / "denoiser.onnx").write_bytes(b"half")
    push(bundle, str(place), quiet)
    assert Bundle.load(place).digest == bundle.digest


def test_another_bundle_than_the_one_wanted_is_not_even_fetched(
    memory: Any, store: Store, bundle: Bundle
) -> None:
    push(bundle, PLACE, quiet)
    fetched: list[str] = []
    with pytest.raises(EngineError, match="sha256:00 was expected"):
        pull(PLACE, store, "a", "sha256:00", fetched.append)
    assert fetched == []


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "..\\evil"])
def test_paths_that_lead_out_of_the_bundle_are_refused(
    memory: Any, store: Store, bundle: Bundle, tmp_path: Path, path: str
) -> None:
    content = json.loads((bundle.path / MANIFEST).read_text())
    content["files"][path] = "0"
    memory.pipe_file(f"/models/tiny/{MANIFEST}", json.dumps(content).encode())
    memory.pipe_file("/models/evil", b"evil")
    with pytest.raises(EngineError, match="leads out of the bundle"):
        pull(PLACE, store, say=quiet)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{", b'{"files": 3}', b"[" * 50_000])
def test_what_is_no_manifest_is_refused(memory: Any, store: Store, content: bytes) -> None:
    memory.pipe_file(f"/models/tiny/{MANIFEST}", content)
    with pytest.raises(EngineError, match="is no manifest of a bundle"):
        pull(PLACE, store, say=quiet)


def test_places_that_cannot_be_reached_say_so(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"is not a bundle: it has no bundle\.json"):
        pull(str(tmp_path), store, say=quiet)
    with pytest.raises(EngineError, match="cannot reach nowhere://x: Protocol not known"):
        push(bundle, "nowhere://x", quiet)
    with pytest.raises(EngineError, match="cannot reach http://127.0.0.1:1/x"):
        pull("http://127.0.0.1:1/x", store, say=quiet)
    with pytest.raises(EngineError, match="gs://bucket/x: .*gcsfs"):
        push(bundle, "gs://bucket/x", quiet)


def test_a_hub_id_is_a_place_on_the_hub_unless_a_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert where_is_hub("owner/model")
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert not any(map(where_is_hub, ["owner/model", "./o/m", "/o/m", "s3://o/m", "model", "a/b/c"]))


def test_the_hub_is_one_more_file_system(
    memory: Any, store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the hub's file system stood in for: there is no network here."""
    made: list[str] = []
    monkeypatch.setattr(transfer, "HUB", "memory://hub/")
    monkeypatch.setattr("huggingface_hub.create_repo", lambda repo, exist_ok: made.append(repo))
    push(bundle, "owner/model", quiet)
    assert made == ["owner/model"]
    assert memory.exists(f"/hub/owner/model/{MANIFEST}")
    assert pull("owner/model", store, say=quiet).digest == bundle.digest


def test_the_commands(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_DATA_DIR", str(tmp_path / "data"))
    there = tmp_path / "there"
    assert main(["bundle", "push", str(bundle.path), str(there)]) == 0
    assert Bundle.load(there).digest == bundle.digest
    assert main(["bundle", "pull", str(there), "--name", "mine", "--digest", bundle.digest]) == 0
    assert capsys.readouterr().out.endswith(f"mine {bundle.digest}\n")
    shutil.rmtree(there)
    assert main(["bundle", "pull", str(there)]) == 2
    assert "is not a bundle" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_pull_that_is_ended_leaves_nothing(
    memory: Any,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    push(bundle, PLACE, quiet)
    monkeypatch.setenv("FEWSTEP_DATA_DIR", str(tmp_path / "data"))
    get, got = MemoryFileSystem.get_file, []

    def ended(self: Any, source: str, target: str, *rest: Any, **named: Any) -> None:
        got.append(source)
        get(self, source, target, *rest, **named)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(MemoryFileSystem, "get_file", ended)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["bundle", "pull", PLACE, "--name", "mine"]) == 130
    assert len(got) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert signal.getsignal(signal.SIGTERM) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fewstep bundle: ")
