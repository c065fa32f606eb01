"""The stage that measures single layers, where the budget of pruning is latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.run import Run

if TYPE_CHECKING:
    from edge_resnet.latency.table import LatencyTable

__all__ = ["layer_latencies", "unmeasured_layers"]


def layer_latencies(run: Run, graph: Graph) -> LatencyTable | None:
    """The latencies of the float graph's layers at every width that pruning could give them; what is not
    known yet is measured. None where the budget is another.
    """
    if run.recipe.prune.latency is None:
        return None
    from edge_resnet.latency.table import latency_table

    with run.stage("measure layers", unmeasured_layers(run, graph)) as advance:
        return latency_table(lower_for_integers(graph), *_choice(run), advance=advance)


def unmeasured_layers(run: Run, graph: Graph) -> int:
    """How many entries of the table are to be measured first."""
    if run.recipe.prune.latency is None:
        return 0
    from edge_resnet.latency.table import missing_entries

    return missing_entries(lower_for_integers(graph), *_choice(run))


def _choice(run: Run) -> tuple[str, str, int, int]:
    settings = run.recipe.prune
    return settings.device, "litert", run.recipe.benchmark.threads, settings.multiple
