"""What the recipes come to: each case is the command that a user gives, and the accuracy of its files.

    python -m benchmarks.quantization [CASE ...] [--runs DIR]

Top-1 is that of the exported TFLite and ONNX files on their runtimes, on all 10,000 test images. A case that
was interrupted goes on from its checkpoint; what is finished is written into the results at once, so cases
can be run one by one. Without a CASE: all of them, hours of training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import record

TARGETS = ("tflite-int8", "onnx-int8")
SEEDS = (0, 1, 2)
# Cross entropy alone, in smaller steps: they are noisier.
LABELS = ("qat.distill.weight=0", "qat.learning_rate=0.0001", "qat.average=1")


@dataclass(frozen=True)
class Case:
    """A model, a recipe and its settings; `teacher` is one of the real models."""

    model: str
    recipe: str
    settings: tuple[str, ...] = ()
    seed: int = 0
    teacher: str | None = None
    options: tuple[str, ...] = ()


def cases() -> dict[str, Case]:
    found = {
        "ptq resnet20": Case("resnet20", "ptq"),
        "ptq resnet56": Case("resnet56", "ptq"),
        "ptq portable resnet20": Case("resnet20", "ptq", ("portable_x86=true",)),
        "ptq-repair resnet20": Case("resnet20", "ptq-repair"),
        "ptq-repair resnet56": Case("resnet56", "ptq-repair"),
        "nncf ptq resnet20": Case("resnet20", "ptq", options=("--quantizer", "nncf")),
        "nncf qat resnet20": Case("resnet20", "qat", options=("--quantizer", "nncf")),
        "qat labels resnet56": Case("resnet56", "qat", ("qat.epochs=2", *LABELS)),
        "qat-distill resnet20": Case("resnet20", "qat-distill", teacher="resnet56"),
    }
    for seed in SEEDS:
        found[f"qat resnet20 seed {seed}"] = Case("resnet20", "qat", seed=seed)
        settings = ("qat.epochs=3", *LABELS)
        found[f"qat labels resnet20 seed {seed}"] = Case("resnet20", "qat", settings, seed)
        found[f"qat portable resnet20 seed {seed}"] = Case("resnet20", "qat", ("portable_x86=true",), seed)
    return found


def main() -> None:
    known = cases()
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(sorted(known))}")
    parser.add_argument("--runs", type=Path, default=record.ROOT / "runs" / "quantization")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(known)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    for name in arguments.cases or known:
        row = _run(known[name], arguments.runs / name.replace(" ", "-"))
        results = record.RESULTS / "quantization.json"
        rows = json.loads(results.read_text())["cases"] if results.exists() else {}
        rows[name] = row
        record.save("quantization", {"cases": dict(sorted(rows.items()))}, quiet=True)
        print(name, {target: values["top1"] for target, values in row["artifacts"].items()}, flush=True)


def _run(case: Case, out: Path) -> dict[str, Any]:
    data = record.real_data()
    command = ["edge-resnet", "compress", case.model, "--weights", f"{data}/{case.model}-cifar10.pt"]
    command += ["--data", f"{data}/cifar10-jpeg.zip", "--recipe", f"recipes/{case.recipe}.yaml"]
    if case.teacher:
        command += ["--teacher", case.teacher, "--teacher-weights", f"{data}/{case.teacher}-cifar10.pt"]
    for setting in (f"seed={case.seed}", "evaluate.parity_images=10000", "benchmark.runs=0", *case.settings):
        command += ["--set", setting]
    for target in TARGETS:
        command += ["--target", target]
    command += [*case.options, "--out", str(out)]
    program = str(Path(sys.executable).with_name("edge-resnet"))
    subprocess.run([program, *command[1:]], check=True, cwd=record.ROOT, stdout=subprocess.DEVNULL)
    report = json.loads((out / "report.json").read_text())
    shown = [part.replace(f"{data}/", "") for part in command[:-2]]
    return {
        "command": " ".join(shown),
        "recipe": report["recipe"],
        "float_top1": report["baseline"]["top1"],
        "stages": {stage["name"]: round(stage["seconds"], 1) for stage in report["stages"]},
        "quantization": _kept(report["quantization"]),
        "artifacts": {artifact["target"]: _artifact(artifact) for artifact in report["artifacts"]},
    }


def _kept(quantization: dict[str, Any]) -> dict[str, Any]:
    """Steps, and training's epochs: the whole curve is in the run's own report."""
    training = [{**run, "losses": len(run["losses"])} for run in quantization["training"]]
    return {"steps": quantization["steps"], "training": training}


def _artifact(artifact: dict[str, Any]) -> dict[str, Any]:
    accuracy, parity = artifact["accuracy"], artifact["parity"]
    return {
        "top1": accuracy["top1"],
        "n": accuracy["n"],
        "delta": accuracy["delta"],
        "delta_ci95": accuracy["delta_ci95"],
        "bytes": artifact["bytes"],
        "ranges": artifact["ranges"],
        "identical": {parity["against"]: parity["identical"]}
        | {cross["against"]: cross["identical"] for cross in artifact["cross_parity"]},
    }


if __name__ == "__main__":
    main()
