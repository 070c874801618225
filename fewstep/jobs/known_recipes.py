"""`python -m fewstep.jobs.known_recipes`: what the server has to know of recipes, as it may not import them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import service.jobs

FILE = Path(service.jobs.__file__).parent / "recipes.json"


def known_recipes() -> dict[str, Any]:
    """The recipe's JSON schema, the sections that one word can stand for, and the shipped recipes of teachers."""
    import yaml

    from distill.recipe import SHIPPED, Recipe, shipped_recipes
    from distill.sections import SHORTHANDS

    recipes = {name: yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()) for name in shipped_recipes()}
    return {"schema": Recipe.model_json_schema(), "shorthands": SHORTHANDS, "recipes": recipes}


def written() -> str:
    return json.dumps(known_recipes(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
    print(FILE)
