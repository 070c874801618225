"""BentoML with its adaptive batching: a `batchable` API behind one that takes single requests, as it is documented."""

from __future__ import annotations

from typing import Any

import bentoml

from benchmarks.peers.work import BATCH, Work

LONGEST = 60_000  # ms that it may let requests wait: far away, so that none is refused


@bentoml.service(workers=1, traffic={"timeout": 600}, logging={"access": {"enabled": False}})
class Engine:
    def __init__(self) -> None:
        self.work = Work()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=LONGEST)
    def draw(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.work(requests)


@bentoml.service(workers=1, traffic={"timeout": 600}, logging={"access": {"enabled": False}})
class Pictures:
    engine = bentoml.depends(Engine)

    @bentoml.api(route="/v1/images/generations")
    async def generations(self, prompt: str, seed: int) -> dict[str, Any]:
        answers = await self.engine.to_async.draw([{"prompt": prompt, "seed": seed}])
        return answers[0]
