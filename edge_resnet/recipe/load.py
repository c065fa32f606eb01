"""A recipe from YAML (`--recipe FILE` or the name of a ready one), changed by `--set KEY=VALUE`.

Every error is one line that says where (FILE:LINE or the setting), which key, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from edge_resnet.errors import InputError
from edge_resnet.recipe.lines import Document, read_document, yaml_problem
from edge_resnet.recipe.problems import Key, explain, sections
from edge_resnet.recipe.ranges import Range, find_ranges, placed
from edge_resnet.recipe.ready import ready_recipes
from edge_resnet.recipe.sections import Recipe

__all__ = ["SearchSpace", "load_recipe", "load_space"]


@dataclass(frozen=True)
class _Setting:
    key: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"--set {self.text!r}"


def load_recipe(source: str | Path | Mapping[str, Any] | None, settings: Sequence[str] = ()) -> Recipe:
    """A recipe from a file, a ready recipe's name, a mapping or the defaults (None), with settings on top.

    Raises InputError naming the file and the line, or the setting, and the key; also for a range, which is
    for `load_space`.
    """
    read = _read(source, settings)
    ranges = find_ranges(read.values, read.place)
    if ranges:
        key = ranges[0].key
        raise InputError(
            f"{read.place(key)}: {'.'.join(key)} is a range, which `edge-resnet search` tries out; here it "
            f"takes one value, for example --set {'.'.join(key)}={_example(ranges[0].at(0.5))}"
        )
    return _validated(read.values, read.place)


def load_space(source: str | Path | Mapping[str, Any] | None, settings: Sequence[str] = ()) -> SearchSpace:
    """A recipe with at least one range, read as `load_recipe` reads one.

    Raises InputError: no range, a wrong one, or what `load_recipe` raises.
    """
    read = _read(source, settings)
    ranges = find_ranges(read.values, read.place)
    if not ranges:
        raise InputError(
            f"{read.place(())}: nothing here is a range, so there is nothing to search; write for example "
            "prune: {latency: {low: 0.3, high: 0.9}}, or begin with the ready recipe: "
            "`edge-resnet search search MODEL`"
        )
    space = SearchSpace(read.values, ranges, read.place)
    space.recipe(space.middle)  # what is wrong besides the ranges is said now
    return space


@dataclass(frozen=True)
class SearchSpace:
    """A recipe's `values`, some of which are `ranges`. `place` says where a key was given."""

    values: Mapping[str, Any]
    ranges: tuple[Range, ...]
    place: Callable[[Key], str]

    @property
    def middle(self) -> dict[tuple[str, ...], Any]:
        return {one.key: one.at(0.5) for one in self.ranges}

    def sampled(self, chosen: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
        """The values as a recipe file holds them, with one for each range."""
        return placed(self.values, chosen)

    def recipe(self, chosen: Mapping[tuple[str, ...], Any]) -> Recipe:
        """Raises InputError where the chosen values mean nothing together."""
        return _validated(self.sampled(chosen), self.place)


@dataclass(frozen=True)
class _Read:
    """A recipe's values, not yet validated, and where each was given."""

    values: dict[str, Any]
    document: Document | None
    changes: tuple[_Setting, ...]

    def place(self, key: Key) -> str:
        return _place(key, self.document, self.changes)


def _read(source: str | Path | Mapping[str, Any] | None, settings: Sequence[str]) -> _Read:
    document = None
    if isinstance(source, str | Path):
        document = read_document(_file_of(source))
        values = _mapping(document)
    else:
        values = {} if source is None else _copied(source)
    changes = [_parsed(setting) for setting in settings]
    for change, value in changes:
        _apply(values, change, value)
    _fill_empty_sections(values, Recipe)
    return _Read(values, document, tuple(change for change, _ in changes))


def _validated(values: Mapping[str, Any], place: Callable[[Key], str]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        key, message = explain(error.errors()[0], Recipe)
        raise InputError(f"{place(key)}: {message}") from None


def _example(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else yaml.safe_dump(value).splitlines()[0]


def _file_of(source: str | Path) -> Path:
    """The path itself, or the ready recipe of that name."""
    path = Path(source)
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return path
    ready = ready_recipes()
    if path.name in ready:
        return ready[path.name]
    near = difflib.get_close_matches(path.name, ready, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"ready ones: {', '.join(ready)}"
    raise InputError(f"{path}: cannot read the recipe: no such file and no ready recipe; {hint}")


def _mapping(document: Document) -> dict[str, Any]:
    if document.values is None:
        return {}
    if not isinstance(document.values, dict):
        raise InputError(f"{document.path}: a recipe is a mapping of keys to values")
    return document.values


def _copied(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(item) if isinstance(item, Mapping) else item for key, item in value.items()}


def _parsed(text: str) -> tuple[_Setting, Any]:
    """The value is read as YAML, so [1, 2], true and null work."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r}: write KEY=VALUE, for example calibration.images=256")
    setting = _Setting(tuple(key.strip().split(".")), text)
    try:
        return setting, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"{setting}: the value is not YAML: {yaml_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{setting}: the value is not YAML: {error}") from error


def _apply(values: dict[str, Any], setting: _Setting, value: Any) -> None:
    """`a.b=1` into values["a"]["b"]."""
    *parents, last = setting.key
    for parent in parents:
        inner = values.get(parent) or {}
        if not isinstance(inner, dict):
            raise InputError(f"{setting}: {parent!r} holds a value, not a section")
        values[parent] = dict(inner)  # an alias (*name) may make two sections of one mapping
        values = values[parent]
    values[last] = value


def _fill_empty_sections(values: dict[str, Any], model: type[BaseModel]) -> None:
    """A section of which every line is commented out is null in YAML; it means the defaults."""
    for name, section in sections(model).items():
        if name in values and values[name] is None:
            values[name] = {}
        if isinstance(values.get(name), dict):
            values[name] = dict(values[name])
            _fill_empty_sections(values[name], section)


def _place(key: Key, document: Document | None, settings: Sequence[_Setting]) -> str:
    """Where the key was given: by the last setting that holds it, else in the file, else inside a setting."""
    parts = tuple(map(str, key))
    for setting in reversed(settings):
        if setting.key == parts[: len(setting.key)]:
            return str(setting)
    if document is not None and document.line(key) is not None:
        return document.place(key)
    for setting in reversed(settings):
        if parts == setting.key[: len(parts)]:
            return str(setting)
    return "the recipe" if document is None else document.place(key)
