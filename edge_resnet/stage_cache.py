"""What stages made, kept by what decides it: the same inputs are not run again.

ROOT/STAGE/KEY/        output.json, and two files a graph (graph/storage.py)

An entry is complete or not there. Each stage keeps its last few.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.storage import graph_from_files, graph_to_files

__all__ = ["StageCache", "StageOutput", "stage_key"]

# Raised where a stage would make something else of the same inputs.
_FORMAT = 1
_MOST_ENTRIES = 8
_RECORD = "output.json"


@dataclass(frozen=True, eq=False)
class StageOutput:
    """`graphs` by their role; `record`: what JSON can hold."""

    graphs: Mapping[str, Graph]
    record: Mapping[str, Any]


def stage_key(**parts: Any) -> str:
    """A digest of all that decides a stage's output: values that JSON can hold, graphs, and None."""
    content = {name: _graph_digest(part) if isinstance(part, Graph) else part for name, part in parts.items()}
    versions = {"format": _FORMAT, "torch": torch.__version__, "numpy": np.__version__}
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
            document = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            for name, digest in document["files"].items():
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                    raise ValueError(f"{name} is not what was written")
            graphs = {role: graph_from_files(folder, role) for role in document["graphs"]}
            output = StageOutput(graphs, document["record"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, GraphError):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with suppress(OSError):
            os.utime(folder)  # used: the last to go
        return output

    def put(self, stage: str, key: str, output: StageOutput) -> None:
        """Keep it. Raises InputError where it cannot be written."""
        parent = self._root / stage
        files: dict[str, bytes] = {}
        for role, graph in output.graphs.items():
            files |= graph_to_files(graph, role)
        document = {
            "graphs": list(output.graphs),
            "record": output.record,
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        try:
            parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
            try:
                for name, content in files.items():
                    (work / name).write_bytes(content)
                (work / _RECORD).write_text(json.dumps(document), encoding="utf-8")
                with suppress(FileExistsError, NotADirectoryError):
                    if not (parent / key).exists():
                        os.rename(work, parent / key)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            self._forget_oldest(parent)
        except OSError as error:
            raise InputError(
                f"{parent}: cannot keep what the stage made: {error.strerror or error}; free some space and "
                "give the same command again: it goes on from there"
            ) from error

    def _forget_oldest(self, parent: Path) -> None:
        entries = [entry for entry in parent.iterdir() if not entry.name.startswith(".new-")]
        entries.sort(key=lambda entry: entry.stat().st_mtime)
        for entry in entries[:-_MOST_ENTRIES]:
            shutil.rmtree(entry, ignore_errors=True)


def _graph_digest(graph: Graph) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(graph_to_files(graph, "graph").items()):
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()
