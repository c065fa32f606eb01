"""Train the bundled demo model: `python -m edge_resnet.models.train_demo`.

ResNet-8 on the digits that scikit-learn ships, half a minute on one core. Writes weights/demo.safetensors
and, beside it, demo.json with the command, the seed, the versions and the accuracy.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

from edge_resnet.data.images import ImageSplit, open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.files import atomic_write
from edge_resnet.models.zoo import DEMO_WEIGHTS, ZOO
from edge_resnet.recipe import Train
from edge_resnet.training import FloatTask, fit, save_trained

__all__ = ["train_demo"]

SEED = 0
# Digits have no mirror images; float32, so that CPUs without bfloat16 need no longer.
SETTINGS = Train(epochs=12, batch=64, label_smoothing=0.05, flip=False, crop_padding=3, precision="float32")


def train_demo() -> float:
    """Train, save, and return the accuracy on the digits kept apart."""
    data, preprocess = open_images("demo"), Preprocess.from_json(ZOO["demo"].preprocess)
    torch.manual_seed(SEED)
    model: nn.Module = ZOO["demo"].build(len(data.classes))
    record = fit(FloatTask(model, preprocess, SETTINGS), data.split("train"), preprocess, SETTINGS, SEED)
    print("losses " + " ".join(f"{epoch.loss:.3f}" for epoch in record.epochs), file=sys.stderr)
    accuracy = _accuracy(model, data.split("val"), preprocess)
    DEMO_WEIGHTS.parent.mkdir(exist_ok=True)
    save_trained(model, DEMO_WEIGHTS)
    details = {
        "command": "python -m edge_resnet.models.train_demo",
        "seed": SEED,
        "epochs": SETTINGS.epochs,
        "top1": accuracy,
        "n": len(data.split("val")),
        "versions": {name: version(name) for name in ("torch", "scikit-learn", "numpy")},
    }
    atomic_write(DEMO_WEIGHTS.with_suffix(".json"), json.dumps(details, indent=1) + "\n")
    return accuracy


@torch.no_grad()
def _accuracy(model: nn.Module, split: ImageSplit, preprocess: Preprocess) -> float:
    correct = 0
    for batch in split.batches(np.arange(len(split)), preprocess, 256):
        answers = model(preprocess.normalized(batch.pixels)).argmax(1).numpy()
        correct += int((answers == batch.labels).sum())
    return correct / len(split)


if __name__ == "__main__":
    print(f"accuracy {train_demo():.4f}")
