"""One .mlpackage on one choice of compute units, in a process of its own on a Mac; benchmark/worker.py's
protocol, and the compute plan.

    python -m edge_resnet.devices.apple_worker PACKAGE --units CPU_ONLY|CPU_AND_GPU|CPU_AND_NE|ALL

    {"plan": true}   {"layers": [{"name", "operator", "runs_on", "can_run_on", "cost_share"}]}

Written against coremltools' documented interface (models.MLModel, models.compute_plan.MLComputePlan); it was
never seen running on a Mac.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from edge_resnet.export.coreml_library import import_coremltools

__all__ = ["UNITS", "ModelOnUnits", "image_size", "main", "plan_rows"]

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL")
_SEED = 0
# The classes of coremltools.models.compute_device.
_PROCESSORS = {
    "MLCPUComputeDevice": "CPU",
    "MLGPUComputeDevice": "GPU",
    "MLNeuralEngineComputeDevice": "Neural Engine",
}


class ModelOnUnits:
    """The package, loaded by Core ML. `ct` is coremltools."""

    def __init__(self, ct: Any, path: Path, units: str) -> None:
        self._ct, self._units = ct, ct.ComputeUnit[units]
        self._model = ct.models.MLModel(str(path), compute_units=self._units)
        # That Core ML refused the program is only a warning of coremltools, and the model is then inert.
        if getattr(self._model, "__proxy__", True) is None:
            raise RuntimeError("Core ML does not load the package on this Mac")
        self.size = image_size(self._model.get_spec())

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, classes], image by image."""
        answers = [self._predict(_picture(image)) for image in pixels]
        return np.concatenate([np.asarray(answer, np.float32).reshape(1, -1) for answer in answers])

    def timed(self, runs: int) -> list[int]:
        """Nanoseconds of each prediction, coremltools' way there and back included."""
        height, width = self.size
        image = _picture(np.random.default_rng(_SEED).integers(0, 256, (height, width, 3), np.uint8))
        latencies = []
        for _ in range(runs):
            begun = time.perf_counter_ns()
            self._predict(image)
            latencies.append(time.perf_counter_ns() - begun)
        return latencies

    def plan(self) -> list[dict[str, Any]]:
        plan = self._ct.models.compute_plan.MLComputePlan.load_from_path(
            self._model.get_compiled_model_path(), compute_units=self._units
        )
        return plan_rows(plan)

    def _predict(self, image: Any) -> Any:
        return self._model.predict({"image": image})["logits"]


def image_size(spec: Any) -> tuple[int, int]:
    """Height and width of the package's image."""
    for each in spec.description.input:
        if each.name == "image" and each.type.imageType.height:
            return int(each.type.imageType.height), int(each.type.imageType.width)
    raise ValueError("the package takes no image called `image`, as ours do")


def plan_rows(plan: Any) -> list[dict[str, Any]]:
    """A row for each operation of an MLComputePlan that some processor runs: constants have none.

    `cost_share`: Core ML's estimate of its share of the whole, 0 to 1; None where it has none.
    """
    program = plan.model_structure.program
    if program is None:
        raise RuntimeError("the package is no ML program, so it has no plan of operations")
    rows = []
    for operation in program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:
            continue
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        rows.append(
            {
                "name": operation.outputs[0].name if operation.outputs else "",
                "operator": operation.operator_name,
                "runs_on": _processor(usage.preferred_compute_device),
                "can_run_on": [_processor(device) for device in usage.supported_compute_devices],
                "cost_share": None if cost is None else float(cost.weight),
            }
        )
    return rows


def _processor(device: Any) -> str:
    name = type(device).__name__
    return _PROCESSORS.get(name, name)


def _picture(image: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(image)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--units", required=True, choices=UNITS)
    options = parser.parse_args()
    # What Core ML's own code prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        _serve(answers, options.artifact, options.units)
    except Exception as error:  # Core ML's errors arrive as RuntimeError and plain Exception
        _answer(answers, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        return 3
    return 0


def _serve(answers: TextIO, artifact: Path, units: str) -> None:
    begun = time.perf_counter()
    ct = import_coremltools()
    imported, before = time.perf_counter(), _peak_memory()
    model = ModelOnUnits(ct, artifact, units)
    model.timed(1)
    _answer(
        answers,
        version=f"macOS {platform.mac_ver()[0]}, coremltools {ct.__version__}",
        import_ms=(imported - begun) * 1000,
        cold_start_ms=(time.perf_counter() - imported) * 1000,
        rss_before_bytes=before,
    )
    for line in sys.stdin:
        command = json.loads(line)
        if command.get("quit"):
            break
        _answer(answers, **_obeyed(command, model))


def _obeyed(command: dict[str, Any], model: ModelOnUnits) -> dict[str, Any]:
    if command.get("plan"):
        return {"layers": model.plan()}
    if "images" in command:
        first, count = int(command["first"]), int(command["count"])
        pixels = np.load(command["images"], mmap_mode="r")[first : first + count]
        logits = model.logits(np.asarray(pixels))
        return {"logits": base64.b64encode(logits.tobytes()).decode(), "shape": logits.shape}
    if int(command.get("batch", 1)) != 1:
        raise ValueError("the package takes one image")
    return {"latency_ns": model.timed(int(command["run"])), "energy_uj": None}


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB


def _answer(answers: TextIO, **values: Any) -> None:
    print(json.dumps({**values, "peak_memory_bytes": _peak_memory()}), file=answers, flush=True)


if __name__ == "__main__":
    sys.exit(main())
