from __future__ import annotations

from ..jobs.conftest import database, server, url

__all__ = ["database", "server", "url"]
