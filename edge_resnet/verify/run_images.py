"""The images that a run was evaluated on, once more."""

from __future__ import annotations

from collections.abc import Iterator

from edge_resnet.data.images import open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.run_directory import EvaluationRecord
from edge_resnet.verify.evaluate import Labels, Pixels

__all__ = ["labelled_batches"]


def labelled_batches(
    record: EvaluationRecord, data: str | None, graph: Graph
) -> tuple[int, Iterator[tuple[Pixels, Labels]]] | None:
    """How many images the run was evaluated on, and these, in its order; None where its data is not here.

    `graph`: one of the run's. Raises InputError for a --data that is not the run's.
    """
    try:
        images = open_images(data or record.data, record.skip_corrupt)
    except InputError:
        if data is not None:
            raise
        return None
    if images.fingerprint != record.fingerprint:
        raise InputError(f"{images.source}: not the images of this run (their names or sizes differ)")
    if images.classes != graph.labels:
        raise InputError(f"{images.source}: its classes are not those of the run")
    split = images.split("val")
    chosen = split.order(record.seed)[: record.images]
    preprocess = Preprocess.from_json(record.preprocess)
    batches = split.batches(chosen, preprocess, record.batch, record.skip_corrupt)
    return len(chosen), ((batch.pixels, batch.labels) for batch in batches)
