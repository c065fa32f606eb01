"""What every part of report.json is: typed, printable, and patient with keys of later versions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["Part"]


class Part(BaseModel):
    """Keys of later versions are kept as they are."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _as_unicode(cls, values: Any) -> Any:
        return _printable(values)


def _printable(value: Any) -> Any:
    """File names that are no UTF-8 reach Python as surrogates, which JSON cannot hold: escape them."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_printable(inner) for inner in value]
    return value
