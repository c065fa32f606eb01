"""`edge-resnet verify`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from edge_resnet.cli.console import ConsoleProgress, error_console
from edge_resnet.verify.prove import Proof
from edge_resnet.verify.verify_run import Verification, verify

__all__ = ["run"]


def run(directory: Path, data: str | None, as_json: bool) -> int:
    """Returns the exit code: 1 when an artifact is not what its graph says."""
    console = error_console()
    result = verify(directory, data, ConsoleProgress(console, quiet=as_json))
    if as_json:
        print(json.dumps(_as_json(result), indent=1))
    else:
        console.print(_table(result))
    for proof in result.proofs.artifacts:
        for warning in proof.warnings:
            print(f"edge-resnet: warning: {warning}", file=sys.stderr)
        for failure in proof.failures:
            print(f"edge-resnet: verification failed: {failure}", file=sys.stderr)
    if not result.failures and not as_json:
        artifacts = result.proofs.artifacts
        unknown = [proof.path.name for proof in artifacts if proof.parity is None]
        which = f"{len(artifacts) - len(unknown)} of" if unknown else "all"
        rest = f"; not known of {', '.join(unknown)}" if unknown else ""
        print(f"{directory}: {which} {len(artifacts)} artifacts are what their graph says{rest}")
    return 1 if result.failures else 0


def _row(proof: Proof, labelled: bool) -> dict[str, Any]:
    parity, outcome = proof.parity, proof.outcome
    seen = parity is not None and parity.n > 0
    measured = labelled and outcome is not None and outcome.top1_correct.size > 0
    return {
        "target": proof.target.name,
        "artifact": proof.path.name,
        "runtime": proof.runner.runtime if proof.runner else None,
        "ranges_checked": proof.ranges.checked if proof.ranges else None,
        "ranges_equal": proof.ranges.equal if proof.ranges else None,
        "weights_checked": proof.weights.checked if proof.weights else None,
        "weights_equal": proof.weights.equal if proof.weights else None,
        "against": parity.against if parity else None,
        "images": parity.n if parity else 0,
        "identical": parity.identical if parity and seen else None,
        "top1_agreement": parity.top1_agreement if parity and seen else None,
        "max_lsb": parity.max_lsb if parity else None,
        "top1": float(outcome.top1_correct.mean()) if outcome and measured else None,
        "failures": proof.failures,
        "warnings": proof.warnings,
    }


def _as_json(result: Verification) -> dict[str, Any]:
    return {
        "ok": not result.failures,
        "artifacts": [_row(proof, result.labelled) for proof in result.proofs.artifacts],
        "notes": list(result.notes),
    }


def _table(result: Verification) -> Table:
    table = Table(title=None, box=None, pad_edge=False)
    for heading in ("target", "read back", "identical", "top-1 agrees", "images", "top-1", ""):
        table.add_column(heading, overflow="fold", justify="left" if heading == "target" else "right")
    for proof in result.proofs.artifacts:
        row = _row(proof, result.labelled)
        check = proof.ranges or proof.weights
        ranges = "—" if check is None else f"{check.equal}/{check.checked}"
        table.add_row(
            row["target"],
            ranges,
            _share(row["identical"]),
            _share(row["top1_agreement"]),
            str(row["images"]),
            _share(row["top1"]),
            "FAILED" if proof.failures else ("warning" if proof.warnings else "ok"),
        )
    return table


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.2%}"
