"""`/v1/models`: what is served and the proof that it is right; loading, versions, aliases."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ..context import FIELDS_ONCE, AsAdmin, InService, Service
from ..orders import written
from ..schemas import (
    AliasList,
    AliasObject,
    Digests,
    LoadRequest,
    ModelList,
    ModelObject,
    PublishRequest,
    VersionList,
    VersionObject,
)
from ..versions import Line, Version
from .images import ERRORS

router = APIRouter(tags=["models"], dependencies=[FIELDS_ONCE])


@router.get("/v1/models", responses=ERRORS)
async def list_models(service: InService) -> ModelList:
    """The models that are there for requests, the default one first."""
    models = service.models
    there = [line for name, line in models.catalogue.lines.items() if models.state(name) != "loading"]
    return ModelList(data=[_card(line.serving, service) for line in there])


@router.get("/v1/models/aliases", responses=ERRORS)
async def list_aliases(service: InService) -> AliasList:
    aliases = service.models.catalogue.aliases.items()
    return AliasList(data=[AliasObject(alias=alias, model=model) for alias, model in aliases])


@router.post("/v1/models/aliases", responses=ERRORS)
async def add_alias(body: AliasObject, service: AsAdmin) -> AliasObject:
    """Gives a model, or a version of it, another name; an alias that exists is turned."""
    await service.models.alias(body.alias, body.model)
    return AliasObject(alias=body.alias, model=service.models.catalogue.aliases[body.alias])


@router.delete("/v1/models/aliases/{alias:path}", responses=ERRORS)
async def remove_alias(alias: str, service: AsAdmin) -> AliasList:
    await service.models.alias(alias, None)
    return await list_aliases(service)


@router.get("/v1/models/{id:path}/versions", responses=ERRORS)
async def list_versions(id: str, service: InService) -> VersionList:
    """Newest first: which serves, which is tried on a share of the requests, which comes back."""
    return _versions(service.models.catalogue.find(id)[0], service)


@router.post("/v1/models/{id:path}/versions", responses=ERRORS)
async def publish(id: str, body: PublishRequest, request: Request, service: AsAdmin) -> VersionObject:
    """Serves a bundle under the name, which may be new, to all requests or to a share of them."""
    version = await service.models.publish(id, body.bundle, body.share, body.reason, body.gate)
    request.state.model = id
    return _version(version, service)


@router.post("/v1/models/{id:path}/promote", responses=ERRORS)
async def promote(id: str, service: AsAdmin) -> VersionList:
    """The canary gets all requests."""
    return _versions(await service.models.promote(id), service)


@router.post("/v1/models/{id:path}/rollback", responses=ERRORS)
async def rollback(id: str, service: AsAdmin) -> VersionList:
    """Withdraws the canary; without one, the version before gets all requests again."""
    return _versions(await service.models.rollback(id), service)


@router.post("/v1/models/{id:path}/load", responses=ERRORS)
async def load(id: str, service: AsAdmin, body: LoadRequest | None = None) -> ModelObject:
    """Has a model in memory; answers when it is warm."""
    return _card(await service.models.load(id, body.bundle if body else None), service)


@router.post("/v1/models/{id:path}/unload", responses=ERRORS)
async def unload(id: str, service: AsAdmin) -> ModelObject:
    """Takes a model out of memory when its pictures are finished; a request would load it again."""
    return _card(await service.models.unload(id), service)


@router.get("/v1/models/{id:path}", responses=ERRORS)
async def get_model(id: str, request: Request, service: InService) -> ModelObject:
    line, pinned = service.models.catalogue.find(id)
    request.state.model = line.name
    return _card(pinned or line.serving, service)


def _card(version: Version, service: Service) -> ModelObject:
    hosted, bundle = service.models.hosted(version), service.models.bundle_of(version)
    manifest = bundle.manifest
    return ModelObject(
        id=version.id.rpartition("@")[0],
        created=hosted.generator.created if hosted else version.published_at,
        steps=sorted(bundle.spec.levels),
        sizes=[written(size) for size in manifest.sizes],
        default_size=written(bundle.spec.default_size),
        batch_sizes=sorted(manifest.batch_sizes),
        backend=hosted.generator.runtime.backend if hosted else None,
        precision=manifest.precision,
        memory_bytes=hosted.bytes if hosted else None,
        state=service.models.state_of(version),
        version=version.id,
        digests=Digests(bundle=bundle.digest, files=manifest.files),
        parity=manifest.certificate.model_dump(mode="json"),
        quality=manifest.quality,
    )


def _versions(line: Line, service: Service) -> VersionList:
    return VersionList(data=[_version(version, service) for version in reversed(line.versions)])


def _version(version: Version, service: Service) -> VersionObject:
    loaded = service.models.hosted(version) is not None
    return VersionObject(**version.model_dump(exclude={"bundle"}), loaded=loaded)
