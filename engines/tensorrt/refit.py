"""New weights for a plan in place of a new build: seconds instead of minutes.

Every weight that the plan can exchange has to get its value from the new graph. A plan that is refitted
in part is half the old model and draws pictures all the same, so anything less is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..bundle import PARTS, Bundle
from ..errors import EngineError
from ..folder import whole_folder
from .api import ICudaEngine
from .build import Check, Say, describe, graph_of, write_manifest
from .cuda import Array
from .kit import Kit
from .plans import FOLDER, Plan, PlanFolder, Plans, open_plans
from .step import structure, weights

SHOWN = 10


def refit_plans(bundle: Bundle, old: PlanFolder, kit: Kit, *, check: Check, say: Say = print) -> PlanFolder:
    """Gives `bundle` the plans of another one, with its own weights.

    Args:
        bundle: Whose weights; it gets the plans.
        old: Plans that were built with `--refittable` from graphs of the same structure, for this GPU.
        kit: The package that built them.
        check: As of `build_plans`: whoever refits runs the result.
        say: As of `build_plans`.

    Raises:
        EngineError: the plans cannot be refitted, are of another structure, or a weight is missing.
    """
    target = old.manifest.target
    folder = bundle.path / FOLDER / target.folder
    with whole_folder(folder) as temporary:
        plans = {}
        for part in PARTS:
            say(f"refitting {part}")
            plans[part] = _refit_part(bundle, part, old, kit, temporary)
        write_manifest(temporary, Plans(target=target, plans=plans, parity=()), check, say)
    return open_plans(folder)


def _refit_part(bundle: Bundle, part: str, old: PlanFolder, kit: Kit, folder: Path) -> Plan:
    model, graph = graph_of(bundle, part)
    if structure(model) != old.manifest.plans[part].structure:
        raise EngineError(f"the graph of {part} is not the one of {old.path}: build the plans, do not refit")
    loader = kit.trt.Runtime(kit.logger)  # outlives the engine
    engine = loader.deserialize_cuda_engine(old.read(part))
    if engine is None:
        raise EngineError(f"{kit.backend} cannot load the plan of {part} in {old.path}: {kit.failure()}")
    refit(engine, kit, weights(bundle.path / graph.file, model), part)
    file = folder / f"{part}.plan"
    file.write_bytes(bytes(engine.serialize()))
    return describe(bundle, part, old.manifest.target, file, graph, model)


def refit(engine: ICudaEngine, kit: Kit, values: Mapping[str, Array], part: str) -> None:
    """Sets every weight of `engine` that can be exchanged to the value of that name.

    Raises:
        EngineError: the engine was not built for it, or lacks a value, or refuses one; lists which.
    """
    if not engine.refittable:
        raise EngineError(f"the plan of {part} cannot be refitted: build it with --refittable")
    refitter = kit.trt.Refitter(engine, kit.logger)
    names = refitter.get_all_weights()
    _none(part, "the new graph has no", [name for name in names if name not in values])
    sizes = {name: refitter.get_weights_prototype(name).size for name in names}
    _none(part, "of another size:", [name for name in names if values[name].size != sizes[name]])
    held = {name: kit.trt.Weights(np.ascontiguousarray(values[name])) for name in names}
    refused = [name for name, weight in held.items() if not refitter.set_named_weights(name, weight)]
    _none(part, f"{kit.backend} refuses", refused)
    _none(part, "still missing:", refitter.get_missing_weights())
    if not refitter.refit_cuda_engine():
        raise EngineError(f"{kit.backend} cannot refit the plan of {part}: {kit.failure()}")


def _none(part: str, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise EngineError(f"refit of {part} is incomplete: {what} {', '.join(names[:SHOWN])}{more}")
