"""`edge-resnet models`, `recipes` and `doctor`."""

from __future__ import annotations

import json

from edge_resnet.cli.console import error_console
from edge_resnet.errors import InputError

__all__ = ["print_models", "print_recipes", "run_doctor"]


def print_models(as_json: bool) -> int:
    from edge_resnet.models.zoo import ZOO

    if as_json:
        rows = [
            {"name": name, "description": entry.description, "kind": entry.kind, "recipe": entry.recipe}
            for name, entry in ZOO.items()
        ]
        print(json.dumps(rows))
        return 0
    for name, entry in ZOO.items():
        print(f"{name:<20} {entry.description}")
    print("torchvision:NAME, timm:NAME, path/to/file.py:callable and package.module:callable work too")
    return 0


def print_recipes(what: str | None) -> int:
    """The ready recipes; `schema` and `defaults` print what they say."""
    if what == "schema":
        from edge_resnet.recipe.ranges import recipe_schema

        print(json.dumps(recipe_schema(), indent=1))
    elif what == "defaults":
        import yaml

        from edge_resnet.recipe import Recipe

        print("# the defaults; write what you change into a file and give it with --recipe")
        print(yaml.safe_dump(Recipe().model_dump(), sort_keys=False), end="")
    elif what is None:
        from edge_resnet.recipe.ready import description_of, ready_folder, ready_recipes

        for name, path in ready_recipes().items():
            print(f"{name:<16} {description_of(path)}")
        print(f"They are in {ready_folder()}")
        print("Give one by its name (--recipe NAME), or a changed copy by its path, or change it with --set.")
    else:
        raise InputError(f"recipes {what!r}: the words here are `schema` and `defaults`")
    return 0


def run_doctor(as_json: bool) -> int:
    from edge_resnet.doctor import checks_to_json, examine, exit_code, print_doctor

    checks = examine()
    if as_json:
        print(json.dumps(checks_to_json(checks), indent=1))
    else:
        print_doctor(checks, error_console())
    return exit_code(checks)
