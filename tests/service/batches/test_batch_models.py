"""Batches and the memory of models: live requests decide what is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

import service.bundles
from service.settings import Settings

from ..bundles_on_disk import Loader, write_bundle
from ..running import run_server, wait_until
from .office import line, office_of


@pytest.mark.slow
def test_no_model_leaves_memory_for_a_batch_and_one_leaves_in_the_middle_of_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.bundles, "load_runtime", Loader())
    folders = {name: tmp_path / name for name in ("x", "y", "z")}
    for name, folder in folders.items():
        write_bundle(folder, ord(name), 40)
    models = {name: str(folder) for name, folder in folders.items()}
    own = {"models": models, "models_memory_mb": 100, "data_dir": tmp_path / "data"}
    with run_server(settings.model_copy(update=own), None) as running:
        office = office_of(running, "none")

        def states() -> dict[str, str]:
            return dict(running.client.get("/health/ready").json()["models"])

        assert states() == {"x": "ready", "y": "ready", "z": "unloaded"}
        batch = office.submit([line("x", model="x", seed=1), line("z", model="z", seed=1)])
        wait_until(lambda: office.openai.batches.retrieve(batch.id).request_counts.completed == 1)
        assert states() == {"x": "ready", "y": "ready", "z": "unloaded"}, "it waits for room"
        assert running.client.post("/v1/models/y/unload").status_code == 200
        ended = office.wait(batch.id)
        assert (ended.status, ended.request_counts.completed) == ("completed", 2)
        assert states()["z"] == "ready"

        more = office.submit([line(str(number), model="x", seed=number) for number in range(400)])
        wait_until(lambda: office.openai.batches.retrieve(more.id).request_counts.completed > 3, 30)
        assert running.generate(model="y").status_code == 200, "a live request finds room all the same"
        assert states()["y"] == "ready"
        assert running.client.post("/v1/models/y/unload").status_code == 200
        assert running.generate(model="x").status_code == 200
        ended = office.wait(more.id, 90)
        assert (ended.status, ended.request_counts.completed) == ("completed", 400)
