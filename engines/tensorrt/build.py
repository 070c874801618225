"""Graphs -> plans: strongly typed, so that a plan computes in the types that the graph names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from onnx import ModelProto

from ..bundle import PARTS, Bundle, Graph, sha256
from ..errors import EngineError
from ..folder import check_disk, whole_folder
from .api import (
    IBuilder,
    IBuilderConfig,
    INetworkDefinition,
    IOptimizationProfile,
    IParser,
    PortableConfig,
)
from .caches import Cache, timing_cache
from .cuda import Gpu
from .kit import Kit
from .plans import (
    FOLDER,
    MANIFEST,
    PORTABLE,
    Plan,
    PlanFolder,
    Plans,
    Target,
    identity,
    open_plans,
)
from .profiles import Profile, profiles
from .step import join_sampler, joined, load_graph, structure

PORTABLE_CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""The Ampere, Ada and Blackwell generations, as documented of TensorRT-RTX's portable plans."""
FLOAT8_CAPABILITIES = ("SM89", "SM120")
"""Those of them that have float8."""
ROOM = 2.0
"""Plans are about as large as their graphs; the old ones are there until the new ones are."""

Say = Callable[[str], None]
Check = Callable[[PlanFolder], Plans]


def target_of(kit: Kit, gpu: Gpu | None, refittable: bool, float8: bool = False) -> Target:
    """What plans of this kit are made for: this GPU, or with TensorRT-RTX several."""
    flags = ("STRONGLY_TYPED", *(("REFIT",) if refittable else ()))
    alone = gpu if kit.rtx is None or refittable else None  # what can be refitted, is for one GPU
    names = FLOAT8_CAPABILITIES if float8 else PORTABLE_CAPABILITIES
    several = tuple(f"{name[2:-1]}.{name[-1]}" for name in names)
    return Target(
        backend=kit.backend,
        version=kit.version,
        gpu=alone.name if alone else PORTABLE,
        capabilities=(alone.capability,) if alone else several,
        flags=flags,
    )


def in_float8(bundle: Bundle) -> bool:
    return bundle.manifest.precision.startswith("fp8")


def build_plans(
    bundle: Bundle,
    kit: Kit,
    gpu: Gpu | None,
    *,
    refittable: bool = False,
    check: Check | None = None,
    say: Say = print,
) -> PlanFolder:
    """Adds plans of all parts to a bundle; plans for the same target that were there are replaced.

    Args:
        bundle: The folder that gets them.
        kit: The package that builds.
        gpu: The GPU that is here; without one only TensorRT-RTX can build.
        refittable: Let the weights be exchanged later; costs some speed.
        check: Runs the plans and returns their manifest with what it measured; it raises if they are wrong.
        say: Is told what is being done, one line at a time.

    Raises:
        EngineError: no GPU, an operator or type that the package has not got, or not enough disk. The
            bundle is as it was then.
    """
    if gpu is None and kit.rtx is None:
        raise EngineError(f"{kit.backend} builds for the GPU of the machine, and there is none here")
    if gpu is None and refittable:
        raise EngineError(f"{kit.backend} builds refittable plans where their GPU is, and there is none here")
    target = target_of(kit, gpu, refittable, in_float8(bundle))
    _check_room(bundle)
    folder = bundle.path / FOLDER / target.folder
    with whole_folder(folder) as temporary:
        plans = {}
        for number, part in enumerate(PARTS, start=1):
            say(f"building {part} with {kit.backend} {kit.version} ({number} of {len(PARTS)})")
            plans[part] = _build_part(bundle, part, kit, target, temporary)
        write_manifest(temporary, Plans(target=target, plans=plans, parity=()), check, say)
    return open_plans(folder)


def write_manifest(folder: Path, manifest: Plans, check: Check | None, say: Say) -> None:
    """`plans.json`, the last file to be written, with the measurements of `check`."""
    if check is not None:
        say("comparing with ONNX Runtime")
        manifest = check(PlanFolder(folder, manifest))
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")


def graph_of(bundle: Bundle, part: str) -> tuple[ModelProto, Graph]:
    """What is compiled of a part: its graph, of the denoiser with the sampler's arithmetic."""
    graph = bundle.manifest.graphs[part]
    model = load_graph(bundle.path / graph.file)
    if part == "denoiser":
        join_sampler(model)
        graph = joined(graph)
    return model, graph


def describe(bundle: Bundle, part: str, target: Target, file: Path, graph: Graph, model: ModelProto) -> Plan:
    """The manifest's entry of a plan that has been written to `file`."""
    shapes = profiles(bundle, part, graph.inputs)
    return Plan(
        file=file.name,
        sha256=sha256(file),
        identity=identity(bundle, part, target, shapes),
        structure=structure(model),
        inputs=graph.inputs,
        outputs=graph.outputs,
        profiles=shapes,
    )


def _build_part(bundle: Bundle, part: str, kit: Kit, target: Target, folder: Path) -> Plan:
    model, graph = graph_of(bundle, part)
    content = compile_graph(
        kit, model, bundle.path / graph.file, profiles(bundle, part, graph.inputs), target
    )
    file = folder / f"{part}.plan"
    file.write_bytes(content)
    return describe(bundle, part, target, file, graph, model)


def compile_graph(
    kit: Kit, model: ModelProto, file: Path, shapes: Sequence[Profile], target: Target
) -> bytes:
    """The plan of a graph; `file` is where it lies, for weights that lie beside it.

    Raises:
        EngineError: the parser or the builder refuses it.
    """
    builder = kit.trt.Builder(kit.logger)
    network, parser = _parsed(kit, builder, model, file)
    config = builder.create_builder_config()
    _configure(kit, config, target)
    for shape in shapes:
        config.add_optimization_profile(_profile(builder, network, shape))
    with _timing(kit, config, target):
        plan = builder.build_serialized_network(network, config)
    del parser  # the network refers to its weights until here
    if plan is None:
        raise EngineError(f"{kit.backend} cannot build {file}: {kit.failure()}")
    return bytes(plan)


def _parsed(kit: Kit, builder: IBuilder, model: ModelProto, file: Path) -> tuple[INetworkDefinition, IParser]:
    typed = 1 << int(kit.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = kit.trt.OnnxParser(network, kit.logger)
    if not parser.parse(model.SerializeToString(), str(file)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"{error.node_operator()}: {error.desc()}" for error in errors) or kit.failure()
        raise EngineError(
            f"{kit.backend} cannot read {file}: {said[:500]}; export with a precision that it has: fp32,"
            " fp16, bf16, int8-qdq or fp8-qdq"
        )
    return network, parser


def _profile(builder: IBuilder, network: INetworkDefinition, shape: Profile) -> IOptimizationProfile:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        span = shape[name]
        profile.set_shape(name, span.min, span.opt, span.max)
    return profile


def _configure(kit: Kit, config: IBuilderConfig, target: Target) -> None:
    config.clear_flag(kit.trt.BuilderFlag.TF32)  # float32 in the graph means float32
    if "REFIT" in target.flags:
        config.set_flag(kit.trt.BuilderFlag.REFIT)
    if kit.rtx is not None:
        portable = cast(PortableConfig, config)
        portable.num_compute_capabilities = len(target.capabilities)
        for index, capability in enumerate(target.capabilities):
            known = getattr(kit.rtx.ComputeCapability, f"SM{capability.replace('.', '')}", None)
            if known is None:
                raise EngineError(f"{kit.backend} {kit.version} has no compute capability {capability}")
            portable.set_compute_capability(known, index)


@contextmanager
def _timing(kit: Kit, config: IBuilderConfig, target: Target) -> Iterator[None]:
    """Measurements of kernels, kept from build to build; TensorRT-RTX measures nothing when it builds."""
    if kit.rtx is not None:
        yield
        return
    cache: Cache = timing_cache(target.folder)
    measured = config.create_timing_cache(cache.read())
    config.set_timing_cache(measured, False)
    yield
    cache.write(bytes(config.get_timing_cache().serialize()))


def _check_room(bundle: Bundle) -> None:
    files = [bundle.path / name for name in bundle.manifest.files]
    check_disk(bundle.path, int(ROOM * sum(file.stat().st_size for file in files)), "building plans")
