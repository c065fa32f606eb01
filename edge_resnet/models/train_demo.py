"""Train the bundled demo model: `python -m edge_resnet.models.train_demo`.

ResNet-8 on the digits that scikit-learn ships, about a minute on two cores. Writes weights/demo.safetensors
and, beside it, demo.json with the command, the seed, the versions and the accuracy.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from edge_resnet.data.images import ImageSplit, open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.files import atomic_write
from edge_resnet.models.zoo import DEMO_WEIGHTS, ZOO

__all__ = ["train"]

EPOCHS = 12
BATCH = 64
PEAK_RATE = 0.1
SEED = 0
_SHIFT = 3  # pixels of random translation


def train() -> float:
    """Train, save, and return the accuracy on the digits kept apart."""
    torch.manual_seed(SEED)
    data, preprocess = open_images("demo"), Preprocess.from_json(ZOO["demo"].preprocess)
    images, labels = _tensors(data.split("train"), preprocess)
    model: nn.Module = ZOO["demo"].build(len(data.classes))
    optimizer = torch.optim.SGD(model.parameters(), PEAK_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        model.train()
        for chosen in torch.split(torch.randperm(len(images)), BATCH):
            loss = F.cross_entropy(model(_shifted(images[chosen])), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.3f}", file=sys.stderr)
    accuracy = _accuracy(model, *_tensors(data.split("val"), preprocess))
    _save(model, accuracy, len(data.split("val")))
    return accuracy


def _tensors(split: ImageSplit, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    batches = list(split.batches(np.arange(len(split)), preprocess, 256))
    pixels = np.concatenate([batch.pixels for batch in batches])
    return preprocess.normalized(pixels), torch.from_numpy(
        np.concatenate([batch.labels for batch in batches])
    )


def _shifted(images: Tensor) -> Tensor:
    """The batch moved by a few random pixels; what comes in is black, as the digits' background."""
    down, right = (int(n) for n in torch.randint(0, 2 * _SHIFT + 1, (2,)))
    padded = F.pad(images, (_SHIFT,) * 4, value=-1.0)
    return padded[:, :, down : down + images.shape[2], right : right + images.shape[3]]


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def _save(model: nn.Module, accuracy: float, count: int) -> None:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    DEMO_WEIGHTS.parent.mkdir(exist_ok=True)
    atomic_write(DEMO_WEIGHTS, save(state))
    record = {
        "command": "python -m edge_resnet.models.train_demo",
        "seed": SEED,
        "epochs": EPOCHS,
        "top1": accuracy,
        "n": count,
        "versions": {name: version(name) for name in ("torch", "scikit-learn", "numpy")},
    }
    atomic_write(DEMO_WEIGHTS.with_suffix(".json"), json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    print(f"accuracy {train():.4f}")
