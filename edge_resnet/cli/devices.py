"""`edge-resnet devices`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edge_resnet.devices.descriptions import Description, Figures, described_folder, read_descriptions
from edge_resnet.devices.registry import SCHEMES

__all__ = ["print_devices"]


def print_devices(as_json: bool) -> int:
    """The kinds of devices, then every phone and board that is described."""
    described = read_descriptions()
    if as_json:
        schemes = [
            {"name": one.name, "example": one.example, "what": one.what, "kind": one.kind}
            for one in SCHEMES.values()
        ]
        rows = [_row(description, figures) for description, figures in described.values()]
        print(json.dumps({"schemes": schemes, "described": rows}, indent=1))
        return 0
    print("--device takes:")
    width = max(len(one.example) for one in SCHEMES.values())
    for one in SCHEMES.values():
        print(f"  {one.example:<{width}}  {one.what} ({one.kind})")
    print("\nor the name of a phone or board, of which latencies are predicted from published figures:")
    _print_described(described)
    print(f"\nThese are described in {described_folder()}")
    return 0


def _print_described(described: Mapping[str, tuple[Description, Figures]]) -> None:
    """In columns, a line each; not a table of rich's, so that it can be searched and cut."""
    rows = [("name", "device", "chipset", "runtimes with figures", "source")]
    for description, figures in described.values():
        source = figures.source_words
        if description.figures is None:
            source += f", of the {figures.device} (same chip)"
        rows.append((description.name, description.title, description.chipset, _runtimes(figures), source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print(f"  {line}".rstrip())


def _runtimes(figures: Figures) -> str:
    return ", ".join(f"{runtime} {'+'.join(kinds)}" for runtime, kinds in figures.runtimes.items())


def _row(description: Description, figures: Figures) -> dict[str, Any]:
    return {
        "name": description.name,
        "title": description.title,
        "chipset": description.chipset,
        "form": description.form,
        "kind": "predicted",
        "figures": figures.model_dump(),
        "same_chip_as": description.same_chip_as,
        "note": description.note,
    }
