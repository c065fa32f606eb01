"""Phones and boards by name: `devices/NAME.yaml` says what each is and where figures of it were published.

`described/` is a link to the checkout's `devices/`; a wheel holds the files themselves there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from edge_resnet.errors import InputError
from edge_resnet.recipe.lines import Document, read_document
from edge_resnet.recipe.problems import explain

__all__ = [
    "Description",
    "Figures",
    "described_folder",
    "described_names",
    "find_description",
    "read_description",
    "read_descriptions",
]

Runtime = Literal["tflite", "onnx", "qnn_dlc"]
Precision = Literal["float", "w8a8"]
Form = Literal["phone", "tablet", "board", "laptop", "auto", "xr"]
Text = Annotated[str, Field(min_length=1)]
_CHOICE = "choice"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Figures(_Part):
    """Published measurements: whose (`source`, its `release`, the `device` as it is called there), of which
    `models`, with which runtimes and precisions (`float`: half floats; `w8a8`: int8).
    """

    source: Text
    release: Text
    device: Text
    models: Annotated[list[Text], Field(min_length=1)]
    runtimes: Annotated[dict[Runtime, Annotated[list[Precision], Field(min_length=1)]], Field(min_length=1)]

    @property
    def source_words(self) -> str:
        return f"{self.source} {self.release}"


class Description(_Part):
    """One file of `devices/`. Either it has figures of its own, or it names the device with the same chip
    (`same_chip_as`) of which there are some.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    title: Text
    chipset: Text
    form: Form
    figures: Figures | None = None
    same_chip_as: Text | None = None
    note: Text | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.figures is None) == (self.same_chip_as is None):
            raise PydanticCustomError(_CHOICE, "needs either figures or same_chip_as, and not both")
        return self


def described_folder() -> Path:
    return (Path(__file__).parent / "described").resolve()


def described_names(folder: Path | None = None) -> list[str]:
    return sorted(path.stem for path in (folder or described_folder()).glob("*.yaml"))


def find_description(name: str, folder: Path | None = None) -> tuple[Description, Figures]:
    """The description of that name, with the figures that hold for it: its own or its chip's.

    Raises InputError: there is none, it is damaged, or what it refers to is not there.
    """
    folder = folder or described_folder()
    if name not in described_names(folder):
        raise InputError(f"{name}: no such device in {folder}; `edge-resnet devices` lists them")
    path = folder / f"{name}.yaml"
    description = read_description(path)
    if description.figures is not None:
        return description, description.figures
    where = read_document(path).place(("same_chip_as",))
    like = folder / f"{description.same_chip_as}.yaml"
    if description.same_chip_as not in described_names(folder):
        raise InputError(f"{where}: same_chip_as: there is no {like.name} here")
    other = read_description(like)
    if other.figures is None or other.chipset != description.chipset:
        raise InputError(f"{where}: same_chip_as: {like.name} has no figures of a {description.chipset}")
    return description, other.figures


def read_descriptions(folder: Path | None = None) -> Mapping[str, tuple[Description, Figures]]:
    """All, by name. Raises InputError as `find_description`."""
    return {name: find_description(name, folder) for name in described_names(folder)}


def read_description(path: Path) -> Description:
    """Raises InputError with the file and the line: unreadable, not YAML, an unknown key, a wrong value."""
    document = read_document(path)
    if not isinstance(document.values, dict):
        raise InputError(f"{path}: a description is a mapping of keys to values")
    try:
        description = Description.model_validate(document.values)
    except ValidationError as error:
        raise _refused(document, error) from None
    if description.name != path.stem:
        raise InputError(f"{document.place(('name',))}: name: {description.name!r}, in a file {path.name}")
    return description


def _refused(document: Document, error: ValidationError) -> InputError:
    """A misspelt key first: what is then missing follows from it."""
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    location = problem["loc"]
    if problem["type"] == _CHOICE:
        return InputError(f"{document.path}: {problem['msg']}")
    if problem["type"] == "missing":
        return InputError(f"{document.place(location)}: {'.'.join(map(str, location))} is missing")
    if location[-1] == "[key]":  # how pydantic marks a wrong key of a mapping
        where = location[:-1]
        return InputError(
            f"{document.place(where)}: unknown key {'.'.join(map(str, where))!r}; {problem['msg']}"
        )
    key, message = explain(problem, Description)
    return InputError(f"{document.place(key)}: {message}")
