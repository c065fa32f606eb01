"""A recipe: everything that decides numbers, as a typed, validated value.

A recipe is YAML (`--recipe FILE`), changed by `--set KEY=VALUE`. An unknown key is an error that names the
nearest one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_resnet.errors import InputError

__all__ = ["Calibration", "Evaluation", "Export", "LocalBenchmark", "Recipe", "Train", "load_recipe"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Train(_Section):
    """Training on the train split before anything else, from random or from given weights. `epochs: 0`: none.

    SGD with Nesterov momentum 0.9. `learning_rate` is the one-cycle schedule's peak, reached after `warmup`
    of all steps. `weight_decay` spares biases and batch normalization. `flip`: mirrored images, wrong for
    digits and letters. `crop_padding`: pixels of random shift. `crop_area`: random crops of at least this
    part of the image, enlarged to its size; 1.0: none. `precision` is the arithmetic's; weights are float32.
    """

    epochs: int = Field(default=0, ge=0)
    batch: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    warmup: float = Field(default=0.25, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    flip: bool = True
    crop_padding: int = Field(default=4, ge=0, le=256)
    crop_area: float = Field(default=1.0, gt=0, le=1)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    device: Literal["cpu", "cuda"] = "cpu"


class Calibration(_Section):
    """Which images set the ranges of activations: the first `images` of the shuffled train split."""

    images: int = Field(default=512, ge=0)
    batch: int = Field(default=32, ge=1)


class Evaluation(_Section):
    """What is measured on the test split. `images: null` takes all of them."""

    images: int | None = Field(default=None, ge=1)
    parity_images: int = Field(default=2000, ge=1)
    emulated_images: int = Field(default=2000, ge=1)
    batch: int = Field(default=50, ge=1)
    skip_corrupt: bool = False


class Export(_Section):
    """The ends and the precision of artifacts.

    `coreml_precision` is the float type of coreml-int8 programs: float32 answers as the integers say, on CPU
    and GPU; float16 also runs on the Neural Engine, and rounds every tensor to 11 bits on the way.
    """

    tflite_io: Literal["uint8", "int8", "float32"] = "uint8"
    coreml_precision: Literal["float16", "float32"] = "float32"


class LocalBenchmark(_Section):
    """Latency on this machine; `runs: 0` leaves it out."""

    runs: int = Field(default=200, ge=0)
    threads: int = Field(default=1, ge=1)


class Recipe(_Section):
    """The whole recipe. `preprocess` overrides what the model's source declares."""

    name: str = "ptq"
    seed: int = Field(default=0, ge=0)
    preprocess: dict[str, Any] = Field(default_factory=dict)
    train: Train = Train()
    calibration: Calibration = Calibration()
    evaluate: Evaluation = Evaluation()
    export: Export = Export()
    benchmark: LocalBenchmark = LocalBenchmark()


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
