"""What a step of quantization-aware training costs, beside a step of float training and one of NNCF's.

    python -m benchmarks.qat_step [--rounds 10]

The same batch and the same precision, in turns; float is the torch module with its batch normalization, in
training mode, as it would be trained. ResNet-20 (32x32, batch 128) and torchvision's resnet18 (224x224, batch
16, random weights, seed 0).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import record
from benchmarks.models import SEED, blurred_noise
from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.nncf_quantizer import calibrate_with_nncf
from edge_resnet.compression.qat_module import QatModule
from edge_resnet.compression.quantize import quantize
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph.float_executor import input_values
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.recipe import Qat

MODELS = {"resnet20": 128, "torchvision:resnet18": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "qat": {},
    "qat, batch norm trained": {"batch_norm": "trained"},
    "qat, scales learned": {"scales": "learned", "freeze_scales": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    rows = {
        f"{model} {precision}": _row(model, batch, precision, rounds)
        for model, batch in MODELS.items()
        for precision in ("bfloat16", "float32")
    }
    record.save("qat_step", {"threads": torch.get_num_threads(), "rounds": rounds, "rows": rows})


def _row(model: str, batch: int, precision: str, rounds: int) -> dict[str, Any]:
    source = open_model(model, None, 10, SEED)
    preprocess = resolve_preprocess(source.preprocess_defaults, {})
    graph = lower_for_integers(import_graph(source, preprocess))
    pixels = blurred_noise(batch, preprocess.size[0])
    integers = quantize(graph, calibrate(graph, [pixels[:16]]))
    labels = torch.from_numpy(np.arange(batch) % 10)
    low = precision == "bfloat16"

    def autocast(module: nn.Module) -> Callable[[Tensor], Tensor]:
        def logits(images: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                answer: Tensor = module(images)
            return answer.float()

        return logits

    module = source.module.train().to(memory_format=torch.channels_last)  # type: ignore[attr-defined]
    normalized = preprocess.normalized(pixels).contiguous(memory_format=torch.channels_last)
    steps = {"float": _step(module, autocast(module), normalized, labels)}
    for name, values in VARIANTS.items():
        qat = QatModule(graph, integers, Qat(precision=precision, **values)).train()
        images = qat.inputs(pixels)
        if "batch_norm" in values:
            qat.calibrate_batch_norm([images])
        steps[name] = _step(qat, qat, images, labels)
    nncf = calibrate_with_nncf(graph, [pixels[:16]]).module.train()
    steps["nncf"] = _step(nncf, autocast(nncf), input_values(graph.input, pixels), labels)
    seconds = record.in_turns(steps, rounds)
    times = {name: round(value["median"] / seconds["float"]["median"], 3) for name, value in seconds.items()}
    return {"batch": batch, "seconds": seconds, "times_float": times}


def _step(
    module: nn.Module, logits: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(module.parameters(), 1e-4, momentum=0.9, nesterov=True)

    def run() -> None:
        loss = F.cross_entropy(logits(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
