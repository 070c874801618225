"""`GET /v1/models`: what is served, and the proof that it is right."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ..context import InService
from ..generator import Generator
from ..orders import written
from ..schemas import Digests, ModelList, ModelObject
from .images import ERRORS

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses=ERRORS)
async def list_models(service: InService) -> ModelList:
    """The models that have been loaded, the default one first."""
    return ModelList(data=[_card(generator) for generator in service.models.generators.values()])


@router.get("/v1/models/{id:path}", responses=ERRORS)
async def get_model(id: str, request: Request, service: InService) -> ModelObject:
    generator = service.models.get(id)
    request.state.model = generator.name
    return _card(generator)


def _card(generator: Generator) -> ModelObject:
    bundle = generator.runtime.bundle
    manifest = bundle.manifest
    return ModelObject(
        id=generator.name,
        created=generator.created,
        steps=list(generator.steps),
        sizes=[written(size) for size in manifest.sizes],
        default_size=written(bundle.spec.default_size),
        batch_sizes=list(generator.batch_sizes),
        backend=generator.runtime.backend,
        precision=manifest.precision,
        digests=Digests(bundle=bundle.digest, files=manifest.files),
        parity=manifest.certificate.model_dump(mode="json"),
        quality=manifest.quality,
    )
