"""What is wrong with a recipe, in words: the key, what is expected there, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from edge_resnet.recipe.combinations import CONFLICT

__all__ = ["Key", "explain", "is_number", "schema_at", "sections"]

Key = tuple[str | int, ...]

_NEAR = 0.6
# A key of another section is meant only if it is nearly the same word; and so is one beside, if another
# section has the very word.
_NEARLY_THE_WORD = 0.8
_MOST_SHOWN = 60


def explain(problem: ErrorDetails, model: type[BaseModel]) -> tuple[Key, str]:
    """The key at fault and the message, which names it."""
    key: Key = problem["loc"]
    if problem["type"] == CONFLICT:
        context = problem.get("ctx", {})
        return tuple(context["key"].split(".")), f"{context['key']}: {problem['msg']}"
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        return key, f"unknown key {_dotted(key)!r}; {_suggestion(key, model)}"
    given = problem["input"]
    shown = str(given).lower() if isinstance(given, bool) else repr(given)  # as YAML writes it
    shown = shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
    expected = _expected(schema_at(key, model.model_json_schema()), problem["type"] == "finite_number")
    return key, f"{_dotted(key)}: expected {expected or problem['msg']}, got {shown}"


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields that are sections: name -> its model."""
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


def _suggestion(key: Key, model: type[BaseModel]) -> str:
    """The nearest key beside it, the same word elsewhere, or else what could stand here."""
    *parents, last = map(str, key)
    beside = _section_at(parents, model)
    known = list(beside.model_fields)
    prefix = "".join(f"{parent}." for parent in parents)
    everywhere = sorted(_keys(model))
    same = [name for name in everywhere if name.rsplit(".", 1)[-1] == last]
    cutoff = _NEARLY_THE_WORD if same else _NEAR
    found = [prefix + name for name in difflib.get_close_matches(last, known, n=1, cutoff=cutoff)] + same
    if not found:
        leaves = {name.rsplit(".", 1)[-1] for name in everywhere}
        near = difflib.get_close_matches(last, leaves, n=1, cutoff=_NEARLY_THE_WORD)
        found = [name for name in everywhere if name.rsplit(".", 1)[-1] in near]
    if found:
        *first, last = map(repr, found)
        return f"did you mean {', '.join(first)}{' or ' if first else ''}{last}?"
    where = f"in {'.'.join(parents)}" if parents else "at the top level"
    return f"known {where}: {', '.join(known)}"


def _section_at(parents: list[str], model: type[BaseModel]) -> type[BaseModel]:
    for parent in parents:
        model = sections(model).get(parent, model)
    return model


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key, sections included, as a.b.c."""
    keys = [prefix + name for name in model.model_fields]
    for name, section in sections(model).items():
        keys += _keys(section, f"{prefix}{name}.")
    return keys


def is_number(schema: Mapping[str, Any]) -> bool:
    """Whether the schema of a key takes numbers."""
    options = schema.get("anyOf", [schema])
    return any(option.get("type") in ("integer", "number") for option in options)


def schema_at(key: Key, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of one key, references followed; empty where the schema says nothing."""
    at: Mapping[str, Any] = schema
    for part in key:
        at = at.get("properties", {}).get(part, {})
        if "$ref" in at:
            at = schema["$defs"][at["$ref"].rsplit("/", 1)[-1]]
    return at


def _expected(schema: Mapping[str, Any], finite: bool) -> str:
    """`an integer of at least 0 or null`."""
    if "anyOf" in schema:
        return " or ".join(_expected(option, finite) for option in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kind: str = schema.get("type", "")
    if kind == "object":
        names = ", ".join(schema.get("properties", {}))
        return f"a section with the keys {names}" if names else "a mapping of keys to values"
    number = f"a {'finite ' if finite else ''}number"
    words = {"integer": "an integer", "number": number, "boolean": "true or false", "string": "text"}
    return words.get(kind, kind) + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    words = (
        ("minimum", "of at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    )
    said = [f"{word} {schema[name]:g}" for name, word in words if name in schema]
    return f" {' and '.join(said)}" if said else ""
