"""Repositories of the Hugging Face hub, by id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .errors import DistillError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def is_repository(name: str) -> bool:
    """Whether `name` looks like `owner/repository`."""
    return REPOSITORY.fullmatch(name) is not None


def download(repository: str) -> Path:
    """The folder of a repository's pipeline in the hub's cache, fetched if it is not there yet.

    Raises:
        DistillError: gated, missing, out of reach or of a foreign class; the message says what to do.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging
    from httpx import HTTPError

    logging.set_verbosity_error()  # it warns, in lines of its own, of what the error below says
    try:
        return Path(DiffusionPipeline.download(repository))
    except (OSError, ValueError, HTTPError) as error:
        raise DistillError(explain(repository, error)) from error
    except AttributeError as error:  # diffusers looks the pipeline class up before it fetches
        raise DistillError(
            f"{repository} names a pipeline class that diffusers does not have: fetch it with "
            f"`hf download {repository} --local-dir DIR` and give DIR"
        ) from error


def cached(repository: str) -> Path | None:
    """The folder of a repository's pipeline if it is in the hub's cache; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "model_index.json")
    return Path(found).parent if isinstance(found, str) else None


def name_of(folder: Path) -> str:
    """The repository id of a folder in the hub's cache, the name of any other."""
    cached = [parent.name for parent in folder.parents if parent.name.startswith("models--")]
    return cached[0].removeprefix("models--").replace("--", "/") if cached else folder.name


def explain(repository: str, error: BaseException) -> str:
    """What to say and advise when loading `repository` raised `error`."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page, causes = f"https://huggingface.co/{repository}", list(_causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{repository} is gated: accept its licence at {page} and {LOG_IN}"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"no folder {repository} here and no such repository at {page}; if it is private, {LOG_IN}"
    return (
        f"no folder {repository} here, and the hub cannot be reached ({type(causes[-1]).__name__}): fetch "
        f"it where there is a network with `hf download {repository}`; if it is gated, {LOG_IN} first"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
