"""Measure the layers of a model on this machine, for pruning elsewhere.

python -m edge_resnet.latency MODEL TABLE.json [--weights FILE] [--threads N] [--multiple N]

Then, on the machine that prunes: `prune: {latency: 0.5, device: TABLE.json}`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from edge_resnet.errors import EdgeResnetError, InputError
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.latency.store import local_store
from edge_resnet.latency.table import latency_table, missing_entries

__all__ = ["main"]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m edge_resnet.latency", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", help="a name of the zoo, or a file")
    parser.add_argument("table", type=Path, help="the file to write")
    parser.add_argument("--weights", type=Path, help="of a zoo model; its latency does not depend on them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--multiple", type=int, default=8, help="of how many channels a width is")
    options = parser.parse_args()
    try:
        if options.threads < 1 or options.multiple < 1:
            raise InputError("--threads and --multiple are at least 1")
        print(_measure(options.model, options.table, options.weights, options.threads, options.multiple))
    except EdgeResnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _measure(name: str, path: Path, weights: Path | None, threads: int, multiple: int) -> str:
    """Write the table; says what it is."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    model = open_model(name, weights, None, 0)
    graph = lower_for_integers(import_graph(model, resolve_preprocess(model.preprocess_defaults, {})))
    total, done = missing_entries(graph, threads=threads, multiple=multiple), 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        print(f"{done} of {total} layers measured", file=sys.stderr)

    table = latency_table(graph, threads=threads, multiple=multiple, advance=advance)
    try:
        shutil.copyfile(local_store(table.runtime, threads).path, path)
    except OSError as error:
        raise InputError(f"{path}: cannot write: {error.strerror or error}") from error
    return f"{path}: {table.description}; {name}: {table.predict(graph):.3f} ms predicted"


if __name__ == "__main__":
    sys.exit(main())
