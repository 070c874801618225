"""A server of its own process, to be killed: `python -m tests.service.batches.server FOLDER SECONDS_PER_IMAGE`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvicorn

from service.app import create_app
from service.server import listen
from service.settings import Settings

from ..fake_runtime import FakeRuntime, make_bundle


async def main(folder: Path, seconds: float) -> None:
    settings = Settings(data_dir=folder, log_level="warning", jobs_workers=False)
    runtime = FakeRuntime(make_bundle(sizes=((64, 64),)))
    app = create_app(settings, {"fake": runtime})
    loading = app.state.service.models.start()
    with listen("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(uvicorn.Server(uvicorn.Config(app, log_config=None)).serve([listener]))
        await loading
        runtime.image_seconds = seconds
        print(listener.getsockname()[1], flush=True)
        await serving


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))
