"""Measured latencies in a file: one a CPU, runtime, version and number of threads."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_resnet.cpu import this_cpu
from edge_resnet.errors import InputError
from edge_resnet.files import atomic_write, cache_folder, check_regular_file
from edge_resnet.latency.clock import Entry, runtime_version

__all__ = ["Machine", "Store", "local_store", "read_store"]

_FORMAT = "edge-resnet latency table 1"
# By family and numbers of channels: see layers.py.
Entries = dict[tuple[str, tuple[int, ...]], Entry]


@dataclass(frozen=True)
class Machine:
    """What latencies belong to."""

    cpu: str
    runtime: str
    version: str
    threads: int


@dataclass
class Store:
    """`path`: the file that holds `entries`. `date`: of the latest entry (YYYY-MM-DD)."""

    path: Path
    machine: Machine
    date: str
    entries: Entries = field(default_factory=dict)

    def add(self, entries: Mapping[tuple[str, tuple[int, ...]], Entry]) -> None:
        """Take them in and write the file, with what another process put there meanwhile."""
        if self.path.exists():
            self.entries = {**_readable(self.path, self.machine).entries, **self.entries}
        self.entries.update(entries)
        self.date = datetime.date.today().isoformat()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path.parent}: cannot keep latencies there ({error.strerror}); "
                "set EDGE_RESNET_CACHE to a folder that can be written"
            ) from error
        atomic_write(self.path, _text(self))


def local_store(runtime: str, threads: int) -> Store:
    """What was measured on this machine so far. A damaged file counts as none: all is measured anew."""
    machine = Machine(this_cpu().name, runtime, runtime_version(runtime), threads)
    words = f"{machine.cpu} {machine.runtime} {machine.version} {threads} threads"
    name = re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")
    return _readable(cache_folder() / "latency" / f"{name}.json", machine)


def read_store(path: Path) -> Store:
    """A table that was measured elsewhere. Raises InputError for a file that is none, or is damaged."""
    check_regular_file(path, "latency table")
    try:
        return _parse(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a latency table, or damaged ({type(error).__name__}: {error}); "
            "`python -m edge_resnet.latency MODEL TABLE.json` measures one"
        ) from error


def _readable(path: Path, machine: Machine) -> Store:
    empty = Store(path, machine, "")
    try:
        store = _parse(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return empty
    return store if store.machine == machine else empty


def _parse(path: Path) -> Store:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content["format"] != _FORMAT:
        raise ValueError(f"its format is {content['format']!r}")
    machine = Machine(**content["machine"])
    if not isinstance(machine.threads, int):
        raise ValueError("the number of threads is none")
    entries: Entries = {}
    for name, widths in content["families"].items():
        for channels, (milliseconds, spread) in widths.items():
            entry = Entry(float(milliseconds), float(spread))
            if not (0 <= entry.milliseconds < float("inf") and 0 <= entry.spread < float("inf")):
                raise ValueError(f"{name}: {milliseconds} milliseconds")
            entries[name, tuple(int(n) for n in channels.split("->"))] = entry
    return Store(path, machine, str(content["date"]), entries)


def _text(store: Store) -> str:
    families: dict[str, dict[str, list[float]]] = {}
    for (name, channels), entry in sorted(store.entries.items()):
        values = [float(f"{value:.6g}") for value in (entry.milliseconds, entry.spread)]
        families.setdefault(name, {})["->".join(map(str, channels))] = values
    content = {
        "format": _FORMAT,
        "machine": asdict(store.machine),
        "date": store.date,
        "families": families,
    }
    return json.dumps(content, indent=1) + "\n"
