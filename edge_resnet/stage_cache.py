"""What stages made, kept by what decides it: the same inputs are not run again.

ROOT/STAGE/KEY/        record.json, two files a graph (graph/storage.py), and index.json: their digests

An entry is complete or not there. Each stage keeps its last few.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.storage import graph_digest, graph_from_files, graph_to_files
from edge_resnet.version import __version__

__all__ = ["StageCache", "StageOutput", "stage_key"]

# Raised where a stage would make something else of the same inputs.
_FORMAT = 1
_MOST_ENTRIES = 8
_INDEX, _RECORD = "index.json", "record.json"
_NEW = ".new-"
# What was being written for longer than this is a killed run's.
_LEFTOVER_SECONDS = 3600.0


@dataclass(frozen=True, eq=False)
class StageOutput:
    """`graphs` by their role; `record`: what JSON can hold."""

    graphs: Mapping[str, Graph]
    record: Mapping[str, Any]


def stage_key(**parts: Any) -> str:
    """A digest of all that decides a stage's output: values that JSON can hold, graphs, and None."""
    content = {name: graph_digest(part) if isinstance(part, Graph) else part for name, part in parts.items()}
    versions = {
        "format": _FORMAT,
        "edge-resnet": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    return hashlib.sha256(json.dumps([content, versions], sort_keys=True).encode()).hexdigest()


class StageCache:
    """`root` is made when something is put there."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, stage: str, key: str) -> StageOutput | None:
        """What was put; None where nothing was, or where it is damaged: then it is deleted."""
        folder = self._root / stage / key
        if not folder.is_dir():
            return None
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            for name, digest in index.items():
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                    raise ValueError(f"{name} is not what was written")
            roles = [name.removesuffix(".safetensors") for name in index if name.endswith(".safetensors")]
            graphs = {role: graph_from_files(folder, role) for role in roles}
            output = StageOutput(graphs, json.loads((folder / _RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, GraphError):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with suppress(OSError):
            os.utime(folder)  # used: the last to go
        return output

    def put(self, stage: str, key: str, output: StageOutput) -> None:
        """Keep it. Raises InputError where it cannot be written."""
        parent = self._root / stage
        files = {_RECORD: json.dumps(output.record).encode()}
        for role, graph in output.graphs.items():
            files |= graph_to_files(graph, role)
        index = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        try:
            parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=_NEW, dir=parent))
            try:
                for name, content in {**files, _INDEX: json.dumps(index).encode()}.items():
                    (work / name).write_bytes(content)
                try:
                    work.rename(parent / key)
                except OSError:
                    if not (parent / key / _INDEX).exists():  # else another process was faster
                        raise
            finally:
                shutil.rmtree(work, ignore_errors=True)
        except OSError as error:
            raise InputError(
                f"{parent}: cannot keep what the stage made: {error.strerror or error}; free some space and "
                "give the same command again: it goes on from there"
            ) from error
        _forget_oldest(parent)


def _forget_oldest(parent: Path) -> None:
    """As far as that is possible: another process may do the same."""
    entries: list[tuple[float, Path]] = []
    with suppress(OSError):
        for entry in parent.iterdir():
            with suppress(OSError):
                entries.append((entry.stat().st_mtime, entry))
    complete = sorted(pair for pair in entries if not pair[1].name.startswith(_NEW))
    before = time.time() - _LEFTOVER_SECONDS
    leftovers = [pair for pair in entries if pair[1].name.startswith(_NEW) and pair[0] < before]
    for _, entry in complete[:-_MOST_ENTRIES] + leftovers:
        shutil.rmtree(entry, ignore_errors=True)
