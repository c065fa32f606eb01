"""What pruned models come to: each case is a call of `compress`, with accuracy and latency of its int8 file.

    python -m benchmarks.pruning [CASE ...] [--runs DIR] [--epochs N] [--images N]

Top-1 is that of the exported int8 TFLite on LiteRT, on all 10,000 test images. A case that was interrupted
goes on from its checkpoint, and what is finished is written into the results at once, so cases can be run one
by one. Without a CASE: all of them, hours of training, and then the three that train nothing:

    latency    of the files of all finished cases in turns, one thread, on a machine with nothing else to do
    predicted  predicted against measured latency of those files, and of prunings at 0.3 to 0.8 of the latency
    resnet50   seconds of pruning torchvision's ResNet-50; what comes out is checked

Cases whose name begins with `vs` are side by side: the same multiply-accumulates or the same predicted
latency as what Torch-Pruning (pip install torch-pruning) makes, then the same short fine-tuning from the same
teacher, and the same quantization and export. `--epochs` and `--images` (of each split) try things out: their
figures are printed, not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import edge_resnet
from benchmarks import record
from benchmarks.peers.pruners import NOTE
from benchmarks.pruned_files import latencies, predictions, resnet50
from benchmarks.pruned_peer import peer_of
from edge_resnet.recipe import BUDGETS

TARGET = "tflite-int8"
SEEDS = (0, 1)
# Side by side: this part of the multiply-accumulates, and so many epochs.
PART = 0.5
SHORT_EPOCHS = 2
# Nothing but pruning, fine-tuning and post-training quantization; a rate that two epochs leave time for.
SHORT = (
    f"finetune.epochs={SHORT_EPOCHS}",
    "finetune.learning_rate=0.006",
    "qat.epochs=0",
    "qat.distill.weight=0",
    "sensitivity.images=0",
)
PEER_RATE = 0.02
CRITERIA = ("l1", "l2", "batch-norm", "taylor", "distillation", "random")


@dataclass(frozen=True)
class Case:
    """A model, a ready recipe and its settings.

    `like`: macs, the budget is what Torch-Pruning's model has; latency, what that is predicted to take.
    `peer`: Torch-Pruning prunes instead of this project, to multiples of so many channels (0: any number).
    """

    model: str
    recipe: str
    settings: tuple[str, ...] = ()
    seed: int = 0
    like: str | None = None
    peer: int | None = None


def cases() -> dict[str, Case]:
    found = {
        "unpruned resnet56": Case("resnet56", "ptq"),
        "unpruned resnet20": Case("resnet20", "ptq"),
        "small": Case("resnet56", "small"),
        "tiny": Case("resnet56", "tiny"),
    }
    for seed in SEEDS:
        found[f"vs torch-pruning seed {seed}"] = Case("resnet56", "small", SHORT, seed, "macs", peer=8)
        found[f"vs ours at its macs seed {seed}"] = Case("resnet56", "small", SHORT, seed, "macs")
        found[f"vs ours at its latency seed {seed}"] = Case("resnet56", "small", SHORT, seed, "latency")
    # What nothing was fitted for may want a larger rate than what was.
    faster = (*SHORT, f"finetune.learning_rate={PEER_RATE}")
    found["vs torch-pruning at a larger rate"] = Case("resnet56", "small", faster, 0, "macs", peer=8)
    found["vs torch-pruning any width"] = Case("resnet56", "small", SHORT, 0, "macs", peer=0)
    found["vs random at its latency"] = Case(
        "resnet56", "small", (*SHORT, "prune.criterion=random"), 0, "latency"
    )
    for criterion in CRITERIA:
        settings = (*SHORT, *budget("macs", PART), "finetune.epochs=1", f"prune.criterion={criterion}")
        found[f"criterion {criterion} resnet20"] = Case("resnet20", "small", settings)
    return found


def budget(name: str, part: float) -> tuple[str, ...]:
    """Settings that make this the only budget, whatever the recipe says."""
    others = tuple(f"prune.{other}=null" for other in BUDGETS if other != name)
    return (*others, f"prune.{name}={part:.4f}")


@dataclass(frozen=True)
class Tried:
    """What `--epochs` and `--images` change; None: nothing."""

    epochs: int | None = None
    images: int | None = None

    @property
    def on(self) -> bool:
        return self.epochs is not None or self.images is not None

    def settings(self, case: Case) -> list[str]:
        if not self.on:
            return []
        found = ["benchmark.runs=20", "calibration.images=32", "evaluate.step_images=20"]
        if case.recipe != "ptq":
            found += ["prune.images=32", "sensitivity.images=0"]
        if self.epochs is not None and case.recipe != "ptq":
            found += [f"finetune.epochs={self.epochs}", f"qat.epochs={min(self.epochs, 1)}"]
        return found


def main() -> None:
    known = cases()
    untrained = ("latency", "predicted", "resnet50")
    parser = argparse.ArgumentParser()
    names = ", ".join((*known, *untrained))
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {names}")
    parser.add_argument("--runs", type=Path, default=record.ROOT / "runs" / "pruning")
    parser.add_argument("--devices", type=int, default=1, help="processes that train, as compress has them")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--images", type=int)
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - {*known, *untrained}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    tried = Tried(arguments.epochs, arguments.images)
    runs = arguments.runs / "tried" if tried.on else arguments.runs
    for name in arguments.cases or (*known, *untrained):
        if name in known:
            row = run_case(known[name], runs / name.replace(" ", "-"), runs, tried, arguments.devices)
            change: dict[str, Any] = {"cases": {name: row}}
        elif name == "latency":
            change = {"latency": latencies(runs, _finished())}
        elif name == "predicted":
            change = {"predicted": predictions(runs, _finished())}
        else:
            change = {"resnet50": resnet50()}
        if tried.on:
            print(json.dumps(change, indent=1))
            continue
        _keep(change)
        print(name, json.dumps(_short(change)), flush=True)


def run_case(case: Case, out: Path, runs: Path, tried: Tried = Tried(), devices: int = 1) -> dict[str, Any]:
    """The row of a case; its run is in `out`, what cases share in `runs`."""
    data = record.real_data()
    images = data / "cifar10-jpeg.zip"
    if tried.images is not None:
        images = _part_of(images, runs / f"{tried.images}-images", tried.images)
    settings = [f"seed={case.seed}", "evaluate.parity_images=10000", *case.settings]
    peer = None
    if case.like is not None:
        peer = peer_of(data, images, runs, PART, 8 if case.peer is None else case.peer)
        settings += budget(case.like, getattr(peer, case.like))
    settings += tried.settings(case)
    command = ["edge-resnet", "compress", case.model, "--weights", f"{case.model}-cifar10.pt"]
    command += ["--data", images.name, "--recipe", f"recipes/{case.recipe}.yaml", "--target", TARGET]
    command += [part for setting in settings for part in ("--set", setting)]
    command += ["--devices", str(devices)] if devices > 1 else []
    stands_in = peer.prune if peer is not None and case.peer is not None else None
    result = _compressed(case, data, images, settings, out, stands_in, " ".join(command), devices)
    if result.failures:
        raise SystemExit(f"{out.name}: {'; '.join(result.failures)}")
    report = json.loads((out / "report.json").read_text())
    row = {"command": " ".join(command), **_row(report)}
    row["file"] = f"{out.name}/{report['artifacts'][0]['path']}"
    if stands_in is not None and peer is not None:
        row["pruning"] |= {"criterion": "see tried", "widths": peer.widths}
        row |= {"pruned by": f"Torch-Pruning {version('torch-pruning')}", "tried": peer.tried, "note": NOTE}
    return row


def _compressed(
    case: Case,
    data: Path,
    images: Path,
    settings: list[str],
    out: Path,
    stands_in: Callable[..., Any] | None,
    command: str,
    devices: int,
) -> edge_resnet.RunResult:
    def compress() -> edge_resnet.RunResult:
        return edge_resnet.compress(
            case.model,
            weights=data / f"{case.model}-cifar10.pt",
            data=images,
            targets=(TARGET,),
            recipe=record.ROOT / "recipes" / f"{case.recipe}.yaml",
            settings=settings,
            out=out,
            command=command,
            devices=devices,
        )

    if stands_in is None:
        return compress()
    # All but the choice of channels is the same code: training, quantization, export, evaluation, timing.
    with patch("edge_resnet.stages.pruning.prune", stands_in):
        return compress()


def _row(report: dict[str, Any]) -> dict[str, Any]:
    artifact, pruning = report["artifacts"][0], report["pruning"]
    accuracy = artifact["accuracy"]
    row = {
        "float_top1": report["baseline"]["top1"],
        "top1": accuracy["top1"],
        "n": accuracy["n"],
        "delta": accuracy["delta"],
        "delta_ci95": accuracy["delta_ci95"],
        "bytes": artifact["bytes"],
        "identical": {parity["against"]: parity["identical"] for parity in [artifact["parity"]]},
        "seconds": {stage["name"]: round(stage["seconds"], 1) for stage in report["stages"]},
        "recipe": report["recipe"],
    }
    if pruning is not None:
        row["pruning"] = {
            **{key: pruning[key] for key in ("budget", "part", "reached", "criterion", "latency", "stages")},
            "macs": round(pruning["stages"][-1]["macs"] / pruning["stages"][0]["macs"], 4),
            "widths": {layer["name"]: layer["after"] for layer in pruning["layers"]},
            "blocks_removed": [block["name"] for block in pruning["blocks"] if block["removed"]],
        }
    return row


def _finished() -> dict[str, Any]:
    path = record.RESULTS / "pruning.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return dict(kept.get("cases", {}))


def _keep(change: dict[str, Any]) -> None:
    """Put the change into the results; a case's command stays with its row."""
    path = record.RESULTS / "pruning.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: kept[key] for key in ("cases", "latency", "predicted", "resnet50") if key in kept}
    rows = {**kept.get("cases", {}), **change.get("cases", {})}
    kept |= {**change, "cases": dict(sorted(rows.items()))}
    kept["distilled"] = _distilled()
    record.save("pruning", kept, quiet=True)


def _distilled() -> dict[str, Any]:
    """The case of benchmarks.quantization that trains ResNet-20 from ResNet-56."""
    rows = json.loads((record.RESULTS / "quantization.json").read_text())["cases"]
    row = rows["qat-distill resnet20"]
    accuracy = row["artifacts"][TARGET]
    return {"command": row["command"], "float_top1": row["float_top1"], "top1": accuracy["top1"]}


def _short(change: dict[str, Any]) -> dict[str, Any]:
    """What is worth a look at once."""
    rows = change.get("cases", {})
    return {name: row["top1"] for name, row in rows.items()} or change


def _part_of(archive: Path, folder: Path, images: int) -> Path:
    """A folder with the first so many images of each split, as many of each class."""
    if folder.exists():
        return next(folder.iterdir())
    seen: dict[str, int] = {}
    with zipfile.ZipFile(archive) as source:
        for name in sorted(source.namelist()):
            place = str(Path(name).parent)
            if name.endswith("/") or seen.get(place, 0) >= images // 10:
                continue
            seen[place] = seen.get(place, 0) + 1
            source.extract(name, folder)
    return next(folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
