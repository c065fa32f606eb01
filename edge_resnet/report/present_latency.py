"""How much faster a pruned model is, in words: predicted, measured, and how far these are apart."""

from __future__ import annotations

from dataclasses import dataclass

from edge_resnet.report.figures import Figure, Reasons
from edge_resnet.report.schema import Kind
from edge_resnet.report.schema_pruning import PruningLatency
from edge_resnet.report.wording import milliseconds

__all__ = ["NO_TABLE", "UNTIMED", "LatencyRow", "latency_rows", "latency_words", "speed_up"]

NO_TABLE = "there was no table of measured layers to predict a latency from: the budget was not latency"
UNTIMED = "the int8 files were not timed beside each other"
_NO_ERROR = "the error of a prediction is known only where there is one, and the file was timed"


@dataclass(frozen=True)
class LatencyRow:
    """`error`: of the prediction, against what was measured."""

    name: str
    predicted: Figure
    measured: Figure
    error: Figure


def speed_up(latency: PruningLatency) -> tuple[float, Kind] | None:
    """How many times as fast the final int8 file is as the unpruned one; measured rather than predicted."""
    if measured := _factor(latency.measured_unpruned_ms, latency.measured_ms):
        return measured, Kind.MEASURED
    if predicted := _factor(latency.predicted_unpruned_ms, latency.predicted_ms):
        return predicted, Kind.PREDICTED
    return None


def latency_words(latency: PruningLatency) -> str:
    """One sentence; empty where nothing is known."""
    pairs = (
        (latency.measured_unpruned_ms, latency.measured_ms, Kind.MEASURED),
        (latency.predicted_unpruned_ms, latency.predicted_ms, Kind.PREDICTED),
    )
    said = [
        f"{kind} {milliseconds(before)} -> {milliseconds(after)}"
        for before, after, kind in pairs
        if before is not None and after is not None
    ]
    gain = speed_up(latency)
    if not said or gain is None:
        return ""
    words = f"Latency of the int8 file: {', '.join(said)}; {gain[0]:.2f} times as fast ({gain[1]})"
    if latency.predicted_ms and latency.measured_ms:
        words += f"; the final prediction is off by {_error(latency.predicted_ms, latency.measured_ms)}"
    return f"{words}."


def latency_rows(latency: PruningLatency, reasons: Reasons) -> list[LatencyRow]:
    """The two files, and how many times as fast the final one is."""
    factors = (
        _factor(latency.predicted_unpruned_ms, latency.predicted_ms),
        _factor(latency.measured_unpruned_ms, latency.measured_ms),
    )
    figures = (
        ("unpruned int8 file", latency.predicted_unpruned_ms, latency.measured_unpruned_ms, milliseconds),
        ("final int8 file", latency.predicted_ms, latency.measured_ms, milliseconds),
        ("times as fast", *factors, lambda value: f"{value:.2f} x"),
    )
    return [
        LatencyRow(
            name=name,
            predicted=reasons.figure(predicted, words, Kind.PREDICTED, NO_TABLE),
            measured=reasons.figure(measured, words, Kind.MEASURED, UNTIMED),
            error=Figure(_error(predicted, measured), Kind.MEASURED)
            if predicted and measured
            else reasons.missing(_NO_ERROR),
        )
        for name, predicted, measured, words in figures
    ]


def _factor(before: float | None, after: float | None) -> float | None:
    return before / after if before and after else None


def _error(predicted: float, measured: float) -> str:
    return f"{predicted / measured - 1:+.1%}"
