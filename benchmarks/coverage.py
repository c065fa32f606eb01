"""Which models of the family come in, go out in every format, and are the same to the bit?

Our zoo, all ResNets, ResNeXts, wide ResNets and RegNets of torchvision and timm (and relatives: MobileNets,
pre-activation, Res2Net, SK, ResNeSt, CSP, legacy SE), with seeded random weights and the pictures' batch-norm
statistics, at 64x64. For each: import, float agreement with torch, int8 on the reference executor, LiteRT,
ONNX Runtime and the MIL evaluator, ranges read back. Each model runs in a process of its own; results are
kept, so that a run that was cut off goes on where it was.

    python -m benchmarks.coverage                     everything (about an hour and a half)
    python -m benchmarks.coverage timm:resnet18 ...   these
    python -m benchmarks.coverage --table             the results as the table of docs/models.md
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record

SIZE, IMAGES, SEED = 64, 16, 0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Larger ones have the same operators as their smaller siblings and would take hours here.
LARGEST_TIMM = 90e6
TIMEOUT = 1200
TIMM_MODULES = ("resnet", "regnet", "resnetv2", "res2net", "sknet", "resnest", "cspnet", "senet")
TARGETS = ("tflite-int8", "onnx-int8", "coreml-int8")
PARTIAL = record.RESULTS / "coverage"


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(_row(sys.argv[2])))
        return
    if sys.argv[1:2] == ["--table"]:
        print(_table(json.loads(PARTIAL.with_suffix(".json").read_text())["models"]))
        return
    names = sys.argv[1:] or _names()
    rows = json.loads(PARTIAL.with_suffix(".json").read_text())["models"] if _resumes() else {}
    for number, name in enumerate(names):
        if name not in rows:
            rows[name] = _in_process(name)
            print(f"{number + 1}/{len(names)} {name}: {_verdict(rows[name])}", file=sys.stderr, flush=True)
            _save(rows)
    _save(rows)


def _resumes() -> bool:
    return PARTIAL.with_suffix(".json").exists()


def _save(rows: dict[str, Any]) -> None:
    record.save(
        "coverage", {"size": SIZE, "images": IMAGES, "summary": _summary(rows), "models": rows}, quiet=True
    )


def _names() -> list[str]:
    from edge_resnet.models.torchvision_models import import_timm, import_torchvision
    from edge_resnet.models.zoo import ZOO

    models, timm = import_torchvision().models, import_timm()
    wanted = ("resnet", "resnext", "wide_resnet", "regnet")
    ours = [f"zoo:{name}" for name in ZOO if name != "demo" and not name.endswith("b")]
    listed = [f"torchvision:{n}" for n in models.list_models(module=models) if n.startswith(wanted)]
    mobile = [f"torchvision:mobilenet_{kind}" for kind in ("v2", "v3_small", "v3_large")]
    return [
        *ours,
        *listed,
        *mobile,
        *(f"timm:{n}" for module in TIMM_MODULES for n in timm.list_models(module=module)),
    ]


def _summary(rows: dict[str, Any]) -> dict[str, Any]:
    rows = {name: row for name, row in rows.items() if row.get("family") != "zoo"}
    tried = {name: row for name, row in rows.items() if "skipped" not in row}
    core = {n: r for n, r in tried.items() if r.get("family") in ("torchvision", "resnet", "regnet")}

    def share(part: dict[str, Any]) -> dict[str, Any]:
        passed = sum(bool(row.get("passes")) for row in part.values())
        return {"tried": len(part), "pass": passed, "share": round(passed / max(1, len(part)), 4)}

    timm = {name: row for name, row in core.items() if name.startswith("timm:")}
    return {
        "torchvision": share({n: r for n, r in core.items() if n.startswith("torchvision:")}),
        "timm ResNet and RegNet": share(timm),
        "relatives": share({n: r for n, r in tried.items() if n not in core}),
        "skipped": sum("skipped" in row for row in rows.values()),
        "identical on all CPU runtimes": sum(bool(row.get("identical")) for row in tried.values()),
    }


def _verdict(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    return "passes" if row.get("passes") else f"FAILS: {row.get('reason')}"


# The family of a model by its name; the first that fits.
FAMILIES = (
    ("mobile (depthwise, inverted residuals)", r"mobile"),
    ("RegNetZ and -V (SE, inverted, SiLU)", r"regnet[zv]"),
    ("RegNet X and Y (Y with SE)", r"regnet"),
    ("SK (selective kernel)", r"sk"),
    ("ResNeSt (split attention)", r"resnest"),
    ("Res2Net, Res2NeXt", r"res2ne"),
    ("CSP, DarkNet", r"(se)?(cs|dark)|cspresne"),
    ("pre-activation (v2)", r"resnetv2"),
    ("anti-aliased (blur, AA)", r".*(aa|blur)"),
    ("ECA", r"eca"),
    ("SE, SENet", r"(legacy_)?se"),
    ("-RS (SE, -T stem)", r"resnetrs"),
    ("wide", r"wide"),
    ("ResNeXt (grouped)", r"resnext"),
    ("-C, -D, -S, -T stems and shortcuts", r"resnet\d+[cdst]"),
    ("standard and bottleneck", r".*resnet"),
)


def _table(rows: dict[str, Any]) -> str:
    """Markdown: a line a family, with how many of its models pass where, and why the others do not."""
    lines = [
        "| family | models | float | tflite-int8 | onnx-int8 | coreml-int8 (emulated) | same to the bit "
        "| why not |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, dict[str, Any]] = {family: {} for family, _ in FAMILIES}
    for name, row in rows.items():
        if "skipped" not in row:
            bare = name.partition(":")[2]
            family = next(label for label, pattern in FAMILIES if re.match(pattern, bare))
            groups[family][name] = row
    for family, members in groups.items():
        if members:
            lines.append(_line(family, members))
    return "\n".join(lines)


def _line(family: str, members: dict[str, Any]) -> str:
    def count(holds: Callable[[dict[str, Any]], bool]) -> str:
        number = sum(holds(row) for row in members.values())
        return "✓" if number == len(members) else f"{number} of {len(members)}"

    def target(name: str) -> str:
        return count(
            lambda row: (
                name in row
                and row[name]["ranges"][0] == row[name]["ranges"][1]
                and name not in row.get("reason", "")
            )
        )

    reasons = Counter(_short(row["reason"]) for row in members.values() if not row.get("passes"))
    why = "; ".join(f"{reason} ({number})" for reason, number in reasons.items())
    cells = (
        family,
        str(len(members)),
        count(lambda row: row.get("float difference", 1) < 1e-3),
        *map(target, TARGETS),
        count(lambda row: bool(row.get("identical"))),
        why,
    )
    return "| " + " | ".join(cells) + " |"


def _short(reason: str) -> str:
    """The operator of a refusal, without the file and line of the model that was tried."""
    found = re.search(r"operator (\S+?):? .*?is not supported|operator (\S+?): (.*?) in module", reason)
    if found is None:
        return reason[:80]
    return f"{found[1] or found[2]}" + (f": {found[3]}" if found[3] else "")


def _in_process(name: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.coverage", "--one", name],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            cwd=record.ROOT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"passes": False, "reason": f"took more than {TIMEOUT} s"}
    try:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        row = {"passes": False, "reason": f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"}
    return row


def _row(name: str) -> dict[str, Any]:
    from edge_resnet.errors import EdgeResnetError

    source, _, model = name.partition(":")
    row: dict[str, Any] = {"family": _family(source, model)}
    try:
        _measure(source, model, row)
    except EdgeResnetError as error:
        # Without the place in the library's source, which says where this machine keeps it.
        row |= {"passes": False, "reason": str(error).split(', File "')[0]}
    return row


def _family(source: str, model: str) -> str:
    if source != "timm":
        return source
    from edge_resnet.models.torchvision_models import import_timm

    timm = import_timm()
    return next(module for module in TIMM_MODULES if model in timm.list_models(module=module))


def _measure(source: str, model: str, row: dict[str, Any]) -> None:
    import torch

    from benchmarks.models import normalized, settled
    from edge_resnet.compression.calibrate import calibrate
    from edge_resnet.compression.quantize import quantize
    from edge_resnet.data.preprocess import Preprocess
    from edge_resnet.frontends.torch_export import graph_from_module
    from edge_resnet.graph.float_executor import FloatExecutor
    from edge_resnet.graph.passes import lower_for_integers, simplify
    from edge_resnet.models.torchvision_models import import_timm, import_torchvision
    from edge_resnet.models.zoo import ZOO

    torch.manual_seed(SEED)
    if source == "timm":
        with torch.device("meta"):
            params = sum(p.numel() for p in import_timm().create_model(model).parameters())
        if params > LARGEST_TIMM:
            row["skipped"] = f"{params / 1e6:.0f} million parameters"
            return
        module = import_timm().create_model(model, num_classes=100)
    elif source == "zoo":
        module = ZOO[model].build(100)
    else:
        extra = {"zero_init_residual": True} if "resne" in model else {}
        module = import_torchvision().models.get_model(model, num_classes=100, **extra)
    row["params"] = sum(p.numel() for p in module.parameters())
    pixels = _pictures()
    images = normalized(pixels, Preprocess((SIZE, SIZE), MEAN, STD))
    module = settled(module, images)
    started = time.perf_counter()
    graph = simplify(graph_from_module(module, model, (SIZE, SIZE), MEAN, STD))
    row["import seconds"] = round(time.perf_counter() - started, 2)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    floats = FloatExecutor(graph).run(pixels)
    row["float difference"] = float(np.abs(floats - expected).max() / np.ptp(expected))
    ready = lower_for_integers(graph)
    quantized = quantize(ready, calibrate(ready, [pixels]))
    row["nodes"], row["int8 top-1 as float"] = len(quantized.nodes), None
    _verify(quantized, pixels, floats, row)


def _verify(quantized: Any, pixels: np.ndarray, floats: np.ndarray, row: dict[str, Any]) -> None:
    from edge_resnet.graph.reference import ReferenceExecutor, dequantize
    from edge_resnet.recipe import Export
    from edge_resnet.targets import TARGETS as KINDS
    from edge_resnet.verify.locate import first_difference
    from edge_resnet.verify.ranges import compare_ranges

    reference = dequantize(ReferenceExecutor(quantized).run(pixels), quantized.output.quant)
    row["int8 top-1 as float"] = float((reference.argmax(1) == floats.argmax(1)).mean())
    noise = np.sqrt(np.mean((reference - floats) ** 2))
    problems = [] if row["float difference"] < 1e-3 else ["float output differs from torch's"]
    for name in TARGETS:
        kind = KINDS[name]
        with tempfile.TemporaryDirectory() as folder:
            path = kind.path(Path(folder), "model")
            kind.write(quantized, path, Export())
            check = compare_ranges(quantized, kind.read_back(path))
            logits = kind.open(path).logits(pixels)
        lsb = float(np.abs(logits - reference).max() / quantized.output.quant.scale)
        agrees = float((logits.argmax(1) == reference.argmax(1)).mean())
        far = float(np.sqrt(np.mean((logits - reference) ** 2)) / noise)
        row[name] = {
            "ranges": [check.checked, check.equal],
            "max lsb": round(lsb, 2),
            "of quantization noise": round(far, 4),
            "top-1": agrees,
        }
        if check.mismatches:
            problems.append(f"{name}: {check.mismatches[0]}")
        if kind.exact and lsb:
            node = first_difference(quantized, kind, pixels)
            where = type(quantized.by_name[node]).__name__ if node else "no single node"
            problems.append(f"{name}: not the same to the bit ({where})")
        elif far > 1:  # Core ML rounds its own way, and deep networks of random weights amplify it
            problems.append(
                f"{name}: logits are {far:.1f} times as far from the integers as these from float"
            )
    row["identical"] = all(row[name]["max lsb"] == 0 for name in TARGETS if KINDS[name].exact)
    row["passes"] = not problems
    if problems:
        row["reason"] = "; ".join(problems)


def _pictures() -> np.ndarray:
    from benchmarks.models import blurred_noise

    return blurred_noise(IMAGES, SIZE)


if __name__ == "__main__":
    main()
