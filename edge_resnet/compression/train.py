"""Training from scratch, or further from given weights, on the train split of an image folder.

SGD with Nesterov momentum (He 2015, section 3.4), the one-cycle learning rate of Smith and Topin,
"Super-Convergence", 2017 (1708.07120), label smoothing, random shifts, flips and crops. On the CPU of one
machine, the same seed and number of threads give the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from edge_resnet.compression.augment import random_resized_crops, shifted_and_flipped
from edge_resnet.data.images import Batch, ImageSplit
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.files import atomic_write
from edge_resnet.progress import Advance
from edge_resnet.recipe import Train

__all__ = ["TrainingRecord", "one_cycle", "save_trained", "train", "trained_path"]

_MOMENTUM = 0.9
_FIRST_RATE = 1 / 25  # of the peak, where the one-cycle schedule begins
# Decoded images are kept in memory up to this many bytes; more are decoded again in every epoch.
_MEMORY = 2 * 2**30
_DECODED_AT_ONCE = 256


@dataclass(frozen=True)
class TrainingRecord:
    """What training did: the mean loss of every epoch, the images seen in each, and how long it took."""

    losses: tuple[float, ...]
    images: int
    seconds: float


def train(
    module: nn.Module,
    split: ImageSplit,
    preprocess: Preprocess,
    settings: Train,
    seed: int,
    advance: Advance = lambda images: None,
    skip_corrupt: bool = False,
) -> TrainingRecord:
    """Train `module` in place, and leave it at evaluation, in float32, on the CPU.

    `module` maps normalized images, float32 [N, 3, H, W], to logits [N, classes]. `advance` is called with
    numbers of images that add up to `settings.epochs` * len(split). An incomplete last batch of an epoch is
    left out: the shuffling of the next epoch brings its images back.
    Raises InputError when the loss is no number any more, or when the model does not fit the labels.
    """
    if not settings.epochs:
        return TrainingRecord((), 0, 0.0)
    started = time.perf_counter()
    device = _device(settings.device)
    source = _Source(split, preprocess, settings.batch, skip_corrupt)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else None):
        torch.manual_seed(seed)  # dropout draws from it
        module.train().to(device)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        loop = _Loop(module, preprocess, settings, rng, device, settings.epochs * source.steps)
        try:
            losses = [
                _epoch(loop, source, rng, number + 1, advance, len(split))
                for number in range(settings.epochs)
            ]
        finally:
            module.to("cpu").eval()
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    _check_finite(module, settings)
    return TrainingRecord(tuple(losses), source.steps * source.batch, time.perf_counter() - started)


def _epoch(
    loop: _Loop, source: _Source, rng: np.random.Generator, number: int, advance: Advance, total: int
) -> float:
    """The mean loss of one epoch."""
    sum_of_losses, seen = 0.0, 0
    for batch in source.batches(rng):
        sum_of_losses += len(batch.labels) * loop.step(batch, number)
        seen += len(batch.labels)
        advance(len(batch.labels))
    advance(total - seen)
    if not seen:
        raise InputError(f"{source.name}: no image of the train split could be decoded")
    return sum_of_losses / seen


class _Source:
    """The shuffled batches of every epoch, decoded once where that fits into memory."""

    def __init__(self, split: ImageSplit, preprocess: Preprocess, batch: int, skip_corrupt: bool) -> None:
        self._split, self._preprocess, self._skip_corrupt = split, preprocess, skip_corrupt
        self.name = split.store.source
        self._decoded: Batch | None = None
        if len(split) * math.prod(preprocess.size) * 3 <= _MEMORY:
            self._decoded = self._decode()
        count = len(split) if self._decoded is None else len(self._decoded.labels)
        self.batch = min(batch, count)
        if self.batch < 2:
            raise InputError(f"{self.name}: {count} images to train on; batch normalization needs two")
        self.steps = count // self.batch

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """One epoch. A batch can be smaller where corrupt images are skipped, but has at least two."""
        count = len(self._split) if self._decoded is None else len(self._decoded.labels)
        order = rng.permutation(count)[: self.steps * self.batch]
        if self._decoded is None:
            batches = self._split.batches(order, self._preprocess, self.batch, self._skip_corrupt)
            yield from (batch for batch in batches if len(batch.labels) > 1)
            return
        for chosen in order.reshape(self.steps, self.batch):
            yield Batch(self._decoded.pixels[chosen], self._decoded.labels[chosen], chosen)

    def _decode(self) -> Batch:
        pixels = np.empty((len(self._split), *self._preprocess.size, 3), np.uint8)
        labels = np.empty(len(self._split), np.int64)
        filled = 0
        for batch in self._split.batches(
            np.arange(len(self._split)), self._preprocess, _DECODED_AT_ONCE, self._skip_corrupt
        ):
            end = filled + len(batch.labels)
            pixels[filled:end], labels[filled:end] = batch.pixels, batch.labels
            filled = end
        return Batch(pixels[:filled], labels[:filled], np.arange(filled))


class _Loop:
    """The optimizer, its schedule, and one step of them."""

    def __init__(
        self,
        module: nn.Module,
        preprocess: Preprocess,
        settings: Train,
        rng: np.random.Generator,
        device: torch.device,
        steps: int,
    ) -> None:
        self._module, self._preprocess, self._settings = module, preprocess, settings
        self._rng, self._device = rng, device
        self._steps, self._done = max(steps, 1), 0
        self._low = settings.precision == "bfloat16" and not _strides_over_one_pixel(
            module, preprocess, device
        )
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise InputError("the model has no parameters to train")
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            # Decay of biases and of batch normalization only unbalances them: He et al., "Bag of Tricks for
            # Image Classification", 2018 (1812.01187), section 3.1.
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.SGD(
            [group for group in groups if group["params"]],
            settings.learning_rate,
            momentum=_MOMENTUM,
            nesterov=True,
        )

    def step(self, batch: Batch, epoch: int) -> float:
        """One batch: the loss before the step. Raises InputError when it is NaN or infinite."""
        settings = self._settings
        rate = settings.learning_rate * one_cycle(self._done / self._steps, settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(
            self._logits(self._images(batch.pixels), batch.labels),
            torch.from_numpy(batch.labels).to(self._device),
            label_smoothing=settings.label_smoothing,
        )
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(f"the loss is {value} in epoch {epoch}", settings)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._done += 1
        return value

    def _images(self, pixels: NDArray[np.uint8]) -> Tensor:
        settings = self._settings
        moved = shifted_and_flipped(pixels, self._rng, settings.crop_padding, settings.flip)
        # uint8 [N, H, W, 3] is channels_last already; what follows keeps that order.
        images = self._preprocess.normalized(moved).to(self._device)
        if settings.crop_area < 1:
            images = random_resized_crops(images, self._rng, settings.crop_area)
        return images.contiguous(memory_format=torch.channels_last)

    def _logits(self, images: Tensor, labels: NDArray[np.int64]) -> Tensor:
        """float32 [N, classes]: the loss is computed in float32, whatever the arithmetic of the layers."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._low):
            logits = self._module(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] <= labels.max():
            answer = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"the model answers {answer} to a batch of {len(labels)} images with labels up to "
                f"{labels.max()}: training needs one logit for each class"
            )
        return logits.float()


def _strides_over_one_pixel(module: nn.Module, preprocess: Preprocess, device: torch.device) -> bool:
    """Whether a strided convolution sees an image of one pixel: such a model is trained in float32.

    The gradient of its weights in bfloat16 is computed from memory that was never written (oneDNN in torch
    2.13; seen with a 3x3 convolution of stride 2 on 1x1, and with no larger image).
    """
    found: list[bool] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        found.append(max(layer.stride) > 1 and max(inputs[0].shape[2:]) == 1)

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    training = module.training
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, 3, *preprocess.size, device=device))
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return any(found)


def one_cycle(done: float, warmup: float) -> float:
    """The learning rate, as a part of its peak, when `done` (0 to 1) of all steps are done.

    Two half cosines: from 1/25 to the peak during `warmup`, and then to 0.
    """
    if done < warmup:
        return _FIRST_RATE + (1 - _FIRST_RATE) * (1 - math.cos(math.pi * done / warmup)) / 2
    return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2


def trained_path(directory: Path, name: str) -> Path:
    """Where a run leaves the weights that it trained."""
    return directory / f"{name}-trained.safetensors"


def save_trained(module: nn.Module, path: Path) -> None:
    """Write the state dict, the same bytes for the same weights. Raises InputError when it cannot."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    atomic_write(path, save(state))


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingToolError("train.device=cuda: this torch sees no CUDA device; leave it at cpu")
    return torch.device(name)


def _check_finite(module: nn.Module, settings: Train) -> None:
    """The last step can still spoil the weights, or a loss that stays finite the batch statistics."""
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise _diverged(f"{name} holds values that are not finite", settings)


def _diverged(what: str, settings: Train) -> InputError:
    return InputError(
        f"training diverged: {what}; lower train.learning_rate (now {settings.learning_rate:g}), or raise "
        f"train.warmup (now {settings.warmup:g})"
    )
