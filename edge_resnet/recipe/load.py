"""A recipe from YAML (`--recipe FILE`), changed by `--set KEY=VALUE`.

An unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from edge_resnet.errors import InputError
from edge_resnet.recipe.sections import Recipe

__all__ = ["load_recipe"]


def load_recipe(source: str | Path | Mapping[str, Any] | None, settings: Sequence[str] = ()) -> Recipe:
    """A recipe from a file, a mapping or the defaults (None), with `KEY=VALUE` settings on top.

    Raises InputError naming the file and the key.
    """
    values, origin = _read(source)
    for setting in settings:
        _apply(values, setting)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {_first_problem(error)}") from None


def _read(source: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    if source is None:
        return {}, "--set"
    if isinstance(source, Mapping):
        return _copied(source), "recipe"
    path = Path(source)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the recipe: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}, str(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys to values")
    return values, str(path)


def _copied(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(item) if isinstance(item, Mapping) else item for key, item in value.items()}


def _apply(values: dict[str, Any], setting: str) -> None:
    """`a.b=1` into values["a"]["b"]; the value is read as YAML, so [1, 2], true and null work."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {setting!r}: write KEY=VALUE, for example calibration.images=256")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"--set {setting!r}: the value is not YAML: {' '.join(str(error).split())}"
        ) from error
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {setting!r}: {parent!r} holds a value, not a section")
    values[last] = value


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _keys(Recipe)
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    return f"{key}: {problem['msg']}, got {problem['input']!r}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            keys += _keys(nested, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
