"""`edge-resnet.yaml` in the working directory: what `edge-resnet compress` does when no MODEL is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from edge_resnet.errors import InputError
from edge_resnet.recipe.ready import ready_recipes

__all__ = ["PROJECT_FILE", "Project", "load_project"]

PROJECT_FILE = "edge-resnet.yaml"


class Project(BaseModel):
    """Every key is optional on the command line too, and the command line wins.

    Paths are relative to the file. `recipe` is a path, a ready recipe's name or the recipe itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    weights: Path | None = None
    data: str | None = None
    targets: tuple[str, ...] = ()
    recipe: Path | dict[str, Any] | None = None
    out: Path | None = None


def load_project(path: Path) -> Project:
    """Read the file. Raises InputError that names the key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        project = Project.model_validate(values)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read it: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the file"
        known = ", ".join(Project.model_fields)
        raise InputError(f"{path}: {key}: {problem['msg']} (keys: {known})") from None
    return project.model_copy(update=_relative_to(path.parent, project))


def _relative_to(folder: Path, project: Project) -> dict[str, Any]:
    updates: dict[str, Any] = {}
    for key in ("weights", "recipe", "out"):
        value = getattr(project, key)
        if key == "recipe" and str(value) in ready_recipes() and not (folder / str(value)).is_file():
            continue
        if isinstance(value, Path):
            updates[key] = folder / value
    if project.data is not None and project.data != "demo":
        updates["data"] = str(folder / project.data)
    return updates
