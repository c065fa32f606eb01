"""Ranges in a recipe, which `edge-resnet search` tries out: any value of the sections below may be one.

{low: 0.3, high: 0.9}       numbers; also `log: true` (even steps of the logarithm) or `step: 0.05`
{choices: [l1, taylor]}     anything
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from edge_resnet.errors import InputError
from edge_resnet.recipe.combinations import CONFLICT
from edge_resnet.recipe.problems import Key, explain, is_number, schema_at, sections
from edge_resnet.recipe.sections import Recipe

__all__ = ["SEARCHED", "Choices", "Interval", "Range", "find_ranges", "placed", "recipe_schema"]

SEARCHED = ("prune", "finetune", "quantizer", "portable_x86", "calibration", "repair", "qat")
"""What may hold ranges. The other sections say what is measured, and how, which must stay the same."""

_INTERVAL_KEYS = ("low", "high", "log", "step")
_WRITTEN = "a range is {low: 0.3, high: 0.9}, with log: true or step: 0.05, or {choices: [a, b]}"
Place = Callable[[Key], str]


@dataclass(frozen=True)
class Interval:
    """All numbers from `low` to `high`, both included; whole ones where both are integers."""

    key: tuple[str, ...]
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def ends(self) -> dict[tuple[str, ...], Any]:
        """Where each end stands below the key, and its value."""
        return {("low",): self.low, ("high",): self.high}

    def at(self, part: float) -> float:
        """The value that lies `part` of the way from low to high, on the range's own steps."""
        if self.log:
            value = math.exp(math.log(self.low) + part * math.log(self.high / self.low))
        else:
            value = self.low + part * (self.high - self.low)
        if self.step is not None:
            value = self.low + round((value - self.low) / self.step) * self.step
        value = min(max(value, self.low), self.high)
        return round(value) if isinstance(self.low, int) else value


@dataclass(frozen=True)
class Choices:
    """One of a few values."""

    key: tuple[str, ...]
    choices: tuple[Any, ...]

    @property
    def ends(self) -> dict[tuple[Any, ...], Any]:
        return {("choices", index): choice for index, choice in enumerate(self.choices)}

    def at(self, part: float) -> Any:
        return self.choices[min(int(part * len(self.choices)), len(self.choices) - 1)]


Range = Interval | Choices


def find_ranges(values: Mapping[str, Any], place: Place) -> tuple[Range, ...]:
    """The ranges of a recipe's values, in their order, each end and each choice within the key's bounds.

    Raises InputError that begins with what `place` says of the key.
    """
    found: list[Range] = []
    for key, written in _mappings(values, Recipe, ()):
        name = ".".join(key)
        if key[0] not in SEARCHED:
            raise InputError(f"{place(key)}: {name} takes one value; ranges are for {', '.join(SEARCHED)}")
        found.append(_parsed(key, written, place))
    for one in found:
        _check_ends(values, one, found, place)
    return tuple(found)


def placed(values: Mapping[str, Any], chosen: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """A copy of the values with others at some keys."""
    copy = dict(values)
    for key, value in chosen.items():
        section = copy
        for part in key[:-1]:
            section[part] = dict(section[part])
            section = section[part]
        section[key[-1]] = value
    return copy


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe with ranges, from which editors complete."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    for name in SEARCHED:
        _allow_ranges(schema["properties"], name, Recipe, definitions)
    definitions["Choices"] = {
        "additionalProperties": False,
        "description": "One of a few values: `edge-resnet search` tries them.",
        "properties": {"choices": {"items": {}, "minItems": 2, "type": "array"}},
        "required": ["choices"],
        "type": "object",
    }
    definitions["Interval"] = {
        "additionalProperties": False,
        "description": "Numbers from low to high: `edge-resnet search` tries them.",
        "properties": {
            "low": {"type": "number"},
            "high": {"type": "number"},
            "log": {"type": "boolean"},
            "step": {"exclusiveMinimum": 0, "type": "number"},
        },
        "required": ["low", "high"],
        "type": "object",
    }
    return schema


def _allow_ranges(
    properties: dict[str, Any], name: str, model: type[BaseModel], definitions: dict[str, Any]
) -> None:
    section = sections(model).get(name)
    if section is not None:
        inner = definitions[section.__name__]["properties"]
        for key in inner:
            _allow_ranges(inner, key, section, definitions)
        return
    written = properties[name]
    if any("$ref" in option for option in written.get("anyOf", ())):
        return  # a section that two others share
    about = {key: written[key] for key in ("title", "default") if key in written}
    value = {key: item for key, item in written.items() if key not in about}
    kinds = ("Interval", "Choices") if is_number(value) else ("Choices",)
    references = [{"$ref": f"#/$defs/{kind}"} for kind in kinds]
    properties[name] = {"anyOf": [*value.get("anyOf", [value]), *references], **about}


def _mappings(
    values: Mapping[str, Any], model: type[BaseModel], before: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """The keys that hold a mapping without being a section; `preprocess` is one that may."""
    for name, value in values.items():
        key = (*before, name)
        if not isinstance(value, Mapping) or name not in model.model_fields or key == ("preprocess",):
            continue
        section = sections(model).get(name)
        if section is None:
            yield key, value
        else:
            yield from _mappings(value, section, key)


def _parsed(key: tuple[str, ...], written: Mapping[Any, Any], place: Place) -> Range:
    name = ".".join(key)

    def wrong(at: Key, message: str) -> InputError:
        return InputError(f"{place((*key, *at))}: {name}: {message}")

    unknown = [part for part in written if part not in (*_INTERVAL_KEYS, "choices")]
    if unknown:
        raise wrong((str(unknown[0]),), f"{unknown[0]!r} means nothing here; {_WRITTEN}")
    if "choices" in written:
        choices = written["choices"]
        if len(written) > 1:
            raise wrong((), f"either low and high, or choices; {_WRITTEN}")
        plain = isinstance(choices, list) and all(
            choice is None or isinstance(choice, bool | int | float | str) for choice in choices
        )
        if not plain or len({(type(choice), choice) for choice in choices}) < max(2, len(choices)):
            raise wrong(("choices",), "choices are a list of at least two different values")
        return Choices(key, tuple(choices))
    for end in ("low", "high"):
        if end not in written:
            raise wrong((), f"{end} is missing; {_WRITTEN}")
    schema = schema_at(key, Recipe.model_json_schema())
    if not is_number(schema):
        raise wrong((), "no number, so it has no low and high; write {choices: [a, b]}")
    return _interval(key, written, "integer" in str(schema), wrong)


def _interval(
    key: tuple[str, ...],
    written: Mapping[str, Any],
    whole: bool,
    wrong: Callable[[Key, str], InputError],
) -> Interval:
    """`whole`: of integers."""
    low, high, log, step = (written.get(part) for part in _INTERVAL_KEYS)
    for end, value in (("low", low), ("high", high), ("step", step)):
        if end == "step" and value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (whole and not isinstance(value, int)):
            raise wrong((end,), f"{end}: expected {'an integer' if whole else 'a number'}, got {value!r}")
    assert low is not None
    assert high is not None
    if not isinstance(log or False, bool):
        raise wrong(("log",), f"log: expected true or false, got {log!r}")
    if low >= high:
        raise wrong(("low",), f"low {low} is not below high {high}")
    if log and step is not None:
        raise wrong(("step",), "log and step exclude each other; leave one of them out")
    if log and low <= 0:
        raise wrong(("low",), f"with log: true, low must be above 0, not {low}")
    if step is not None and not 0 < step <= high - low:
        raise wrong(("step",), f"step: expected a number above 0 and at most {high - low:g}, got {step}")
    return (
        Interval(key, low, high, bool(log), step)
        if whole
        else Interval(key, float(low), float(high), bool(log), None if step is None else float(step))
    )


def _check_ends(values: Mapping[str, Any], one: Range, ranges: list[Range], place: Place) -> None:
    """What means nothing together with other values is for a trial to say, or for the first ones."""
    others = {other.key: other.at(0.5) for other in ranges}
    for at, end in one.ends.items():
        try:
            Recipe.model_validate(placed(values, {**others, one.key: end}))
        except ValidationError as error:
            problem = error.errors()[0]
            if problem["type"] == CONFLICT:
                continue
            key, message = explain(problem, Recipe)
            inside = tuple(map(str, key)) == one.key
            raise InputError(f"{place((*one.key, *at) if inside else key)}: {message}") from None
