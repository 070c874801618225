"""Bundle -> bundle with plans for this machine, and the measurement that they are right."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..bundle import Bundle
from ..errors import EngineError
from ..folder import check_disk, check_target, size_of, whole_folder
from ..runtime.onnx import NOT_ON_CPU, OnnxNetworks
from ..runtime.tensorrt import TensorRTRuntime
from ..widen import open_widened
from .build import Check, Say, build_plans, in_float8, target_of
from .cuda import Gpu, find_gpu
from .kit import Kit, load_kit
from .parity import check_parity
from .plans import FOLDER, PlanFolder, Plans, find_plans, open_plans
from .refit import refit_plans


def add_plans(
    path: Path,
    backend: str,
    *,
    out: Path | None = None,
    refittable: bool = False,
    refit_from: Path | None = None,
    say: Say = print,
) -> PlanFolder:
    """Adds plans for this machine's GPU to a bundle; with TensorRT-RTX a machine without one will do.

    Args:
        path: The bundle.
        backend: `tensorrt` or `tensorrt-rtx`.
        out: A copy of the bundle that gets the plans in its place.
        refittable: Build plans whose weights can be exchanged.
        refit_from: A bundle with such plans: take them, with this bundle's weights, and build nothing.
        say: Is told what is being done, one line at a time.

    Raises:
        EngineError: see `build_plans` and `refit_plans`. Nothing is left behind then.
    """
    kit = load_kit(backend)
    Bundle.load(path)
    gpu = _gpu(kit)
    with _place(path, out) as folder:
        bundle = Bundle.load(folder)
        check = partial(_check, bundle, kit) if _runs(bundle, kit, gpu, refittable, say) else None
        if refit_from is None:
            made = build_plans(bundle, kit, gpu, refittable=refittable, check=check, say=say)
        else:
            made = _refitted(bundle, Bundle.load(refit_from), kit, gpu, check, say)
    return open_plans((out or path) / FOLDER / made.path.name)


def _refitted(
    bundle: Bundle, other: Bundle, kit: Kit, gpu: Gpu | None, check: Check | None, say: Say
) -> PlanFolder:
    if gpu is None or check is None:
        raise EngineError("a refit needs the GPU that the plans are for, and it is not here")
    old = find_plans(other, kit.backend, kit.version, gpu)
    return refit_plans(bundle, old, kit, check=check, say=say)


def _gpu(kit: Kit) -> Gpu | None:
    """TensorRT cannot do without: its error is the caller's. TensorRT-RTX can."""
    if kit.rtx is None:
        return find_gpu()
    try:
        return find_gpu()
    except EngineError:
        return None


def _runs(bundle: Bundle, kit: Kit, gpu: Gpu | None, refittable: bool, say: Say) -> bool:
    capabilities = target_of(kit, gpu, refittable, in_float8(bundle)).capabilities
    if gpu is not None and gpu.capability in capabilities:
        return True
    say(f"the plans are compiled and not run: {gpu.name if gpu else 'no GPU'} is here")
    return False


def _check(bundle: Bundle, kit: Kit, folder: PlanFolder) -> Plans:
    opened = open_widened if bundle.manifest.precision in NOT_ON_CPU else None
    expected = OnnxNetworks(bundle.path, bundle.spec, opened=opened)
    found = TensorRTRuntime(bundle, folder, kit)
    return folder.manifest.model_copy(update={"parity": check_parity(bundle, expected, found)})


@contextmanager
def _place(path: Path, out: Path | None) -> Iterator[Path]:
    """The bundle itself, or a copy of it that is at `out` when the block has succeeded."""
    if out is None:
        yield path
        return
    check_target(out)
    check_disk(out, size_of(path), "the copy")
    with whole_folder(out) as temporary:
        shutil.copytree(path, temporary, dirs_exist_ok=True)
        yield temporary
