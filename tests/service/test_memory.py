"""An engine that is replaced leaves memory, and what its loader used goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from pathlib import Path

import pytest

from engines.bundle import Bundle
from engines.runtime.base import Runtime
from engines.runtime.text import Tokenizers
from engines.store import find_bundle
from service import memory, watchdog
from service.generator import Generator
from service.image import Image
from service.memory import give_back, resident_bytes
from service.metrics import Metrics
from service.settings import Settings

from .fake_runtime import FakeRuntime
from .running import wait_until
from .test_faults import MortalRuntime


class Loads:
    """Loads engines and remembers each, but keeps only the newest."""

    def __init__(self) -> None:
        self.alive: MortalRuntime | None = None
        self.all: list[weakref.ref[Runtime]] = []

    def __call__(self) -> Runtime:
        self.alive = MortalRuntime()
        self.all.append(weakref.ref(self.alive))
        return self.alive


@pytest.mark.parametrize("inside", [1, 6])
def test_an_engine_that_was_replaced_is_gone(
    tmp_path: Path, inside: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the help of the garbage collector, which may not come by for a long time."""
    caplog.set_level("CRITICAL", logger="service")  # what pytest keeps of the log holds its exceptions
    loads = Loads()
    generator = Generator("m", loads, Settings(data_dir=tmp_path), Metrics())
    generator.warm_up()
    gc.disable()
    try:
        for old in range(1, 4):
            assert loads.alive is not None
            loads.alive.dead.set()
            images = [Image(f"a {number}", old, 4, (64, 64)) for number in range(inside)]
            generator.submit(images)
            assert [len(image.file.result(20)) > 100 for image in images] == [True] * inside
            assert len(loads.all) == old + 1
            wait_until(lambda: not any(one() for one in loads.all[:-1]))
    finally:
        gc.enable()
        generator.close()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_what_was_freed_goes_back_to_the_system() -> None:
    if memory._trim is None:
        pytest.skip("this C library cannot")
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    size, blocks = 50_000, []
    for _ in range(2000):  # 100 MB, each below the size that has pages of its own
        blocks.append(library.malloc(size))
        ctypes.memset(blocks[-1], 1, size)
    last = library.malloc(size)  # above all of them, so that nothing goes back by itself
    ctypes.memset(last, 1, size)
    for block in blocks:
        library.free(block)
    before = resident_bytes()
    give_back()
    assert before - resident_bytes() > 50 << 20
    library.free(last)


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert memory._find_trim() is None
    monkeypatch.setattr(memory, "_trim", None)
    give_back()


def test_the_watchdog_gives_back_now_and_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = []
    monkeypatch.setattr(watchdog, "give_back", lambda: given.append(1))
    generator = Generator("m", FakeRuntime(), Settings(data_dir=tmp_path), Metrics())
    generator.watchdog.tick()
    assert given == []
    monkeypatch.setattr(watchdog, "GIVE_BACK_SECONDS", 0.0)
    generator.watchdog.tick()
    assert given == [1]


def test_prompts_do_not_add_up() -> None:
    """A tokenizer remembers words, and to some of them a prompt is one."""
    bundle = Bundle.load(find_bundle("shapes-sana-sid"))
    tokenize = Tokenizers(bundle.path, bundle.spec)
    for number in range(2_000):
        tokenize([f"a red circle left of a blue star, number {number}"])
    before = resident_bytes()
    for number in range(2_000, 10_000):
        tokenize([f"a red circle left of a blue star, number {number}"])
    assert resident_bytes() - before < 5 << 20  # 17 MB by default


def test_a_picture_that_is_done_needs_no_garbage_collector(tmp_path: Path) -> None:
    """What circles keep is only found by rare full collections: a busy server's memory grew until then."""
    settings = Settings(data_dir=tmp_path, result_cache_mb=1)
    generator = Generator("m", FakeRuntime(), settings, Metrics())
    generator.warm_up()
    gone, files = list[weakref.ref[Image]](), list[bytes]()
    gc.disable()
    try:
        for seed in range(3):  # the threads' frames hold on to the last one
            image = Image("a", seed, 2, (64, 64))
            gone.append(weakref.ref(image))
            generator.submit([image])
            generator.results.keep(image)
            files.append(image.file.result(30))
            del image
        wait_until(lambda: [one() is None for one in gone[:2]] == [True, True])
    finally:
        gc.enable()
    again = generator.results.find(Image("a", 0, 2, (64, 64)))
    assert again is not None
    assert again.file.result(1) == files[0]
    assert generator.idle
    generator.close()
