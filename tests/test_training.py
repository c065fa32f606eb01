"""The training loop: interrupted, spread over processes, out of space, and given what is not its own."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from edge_resnet.cli.console import ConsoleProgress
from edge_resnet.data.images import ImageSplit, open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.models.zoo import ZOO
from edge_resnet.progress import SilentProgress
from edge_resnet.quantization_record import TrainingRecord
from edge_resnet.recipe import Optimization, Train
from edge_resnet.training import (
    FloatTask,
    LiveMetrics,
    Portion,
    data,
    fit,
    identity_of,
    loop,
    show_on,
    weights_digest,
)
from edge_resnet.training.ranks import _batch_norm

SMALL = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)
SETTINGS = Train(epochs=3, batch=8, learning_rate=0.05, crop_padding=2, crop_area=0.6)
STEPS = 9  # 24 images in batches of 8, three times


@pytest.fixture
def split(image_folder: Path) -> ImageSplit:
    return open_images(str(image_folder)).split("train")


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after each step."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", -1.0)


class Interruption(Exception):
    pass


def at_step(step: int, act: Callable[[], None]) -> Callable[[LiveMetrics], None]:
    def report(live: LiveMetrics) -> None:
        if live.step == step and not live.ended:
            act()

    return report


def interrupted() -> None:
    raise Interruption


def train(
    split: ImageSplit,
    settings: Train = SETTINGS,
    state: Path | None = None,
    report: Callable[[LiveMetrics], None] = lambda live: None,
    devices: int = 1,
    identity: str = "mine",
    skip_corrupt: bool = False,
    kind: type[FloatTask] = FloatTask,
    dropout: float = 0.0,
) -> tuple[nn.Module, TrainingRecord]:
    torch.manual_seed(0)
    module = nn.Sequential(ZOO["demo"].build(3), nn.Dropout(dropout))
    module.to(torch.float64 if kind is Double else torch.float32)
    record = fit(
        kind(module, SMALL, settings),
        split,
        SMALL,
        settings,
        seed=3,
        state=state,
        identity=identity,
        report=report,
        skip_corrupt=skip_corrupt,
        devices=devices,
    )
    return module, record


def checkpoint(state: Path) -> Path:
    return state / "train" / "checkpoint.safetensors"


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize(
    ("change", "memory"),
    [
        ({}, 2**30),
        ({"optimizer": "adamw", "precision": "float32", "learning_rate": 0.01}, 2**30),
        ({"optimizer": "muon", "learning_rate": 0.01}, 2**30),
        ({"average": 0.5}, 2**30),
        ({"epochs": 2}, 0),  # images are decoded again in each epoch
    ],
)
@pytest.mark.usefixtures("every_step")
def test_interrupted_training_comes_to_the_same_bits(
    split: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], memory: int
) -> None:
    monkeypatch.setattr(data, "MEMORY", memory)
    settings, state = SETTINGS.model_copy(update=change), tmp_path / "state"
    undisturbed, whole = train(split, settings, dropout=0.1)
    for step in (2, 3, 5):
        with pytest.raises(Interruption):
            train(split, settings, state, at_step(step, interrupted), dropout=0.1)
    resumed, record = train(split, settings, state, dropout=0.1)
    assert same(undisturbed, resumed)
    assert record.losses == whole.losses
    assert [(e.epoch, e.loss, e.top1) for e in record.epochs] == [
        (e.epoch, e.loss, e.top1) for e in whole.epochs
    ]
    assert (whole.resumed_at, record.resumed_at) == ((), (1, 2, 4))
    assert record.images == whole.images == 24


class Watched(FloatTask):
    """Keeps the weights before each step."""

    seen: ClassVar[list[list[torch.Tensor]]] = []

    def on_step(self, step: int, total: int) -> None:
        self.seen.append([p.detach().clone() for p in self.module.parameters()])


def test_the_average_of_the_weights_comes_out(split: ImageSplit) -> None:
    """Against a plain loop over the weights after each step."""
    Watched.seen.clear()
    last, _ = train(split, kind=Watched)
    averaged, _ = train(split, SETTINGS.model_copy(update={"average": 4 / STEPS}))
    expected, *after = [*Watched.seen, list(last.parameters())]
    for weights in after:
        expected = [0.75 * mean + 0.25 * weight for mean, weight in zip(expected, weights, strict=True)]
    assert len(after) == STEPS
    for found, mean in zip(averaged.parameters(), expected, strict=True):
        assert torch.allclose(found, mean, atol=1e-6)


def test_what_is_finished_is_loaded(
    split: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, record = train(split, state=tmp_path)
    written = checkpoint(tmp_path).read_bytes()
    monkeypatch.setattr(ImageSplit, "batches", None)  # no image is looked at
    again, loaded = train(split, state=tmp_path)
    assert same(first, again)
    assert not again.training
    assert (loaded.losses, loaded.epochs) == (record.losses, record.epochs)
    assert (record.resumed_at, loaded.resumed_at) == ((), (STEPS,))
    assert checkpoint(tmp_path).read_bytes() == written


def test_another_training_is_not_overwritten(split: ImageSplit, tmp_path: Path) -> None:
    train(split, state=tmp_path)
    before = checkpoint(tmp_path).read_bytes()
    with pytest.raises(InputError, match=r"another model, recipe or data set; give another --out, or delete"):
        train(split, state=tmp_path, identity="other")
    assert checkpoint(tmp_path).read_bytes() == before


def test_identity_is_what_decides() -> None:
    module = nn.Linear(2, 2)
    before = identity_of(weights=weights_digest(module), recipe=SETTINGS.model_dump(mode="json"))
    assert before == identity_of(recipe=SETTINGS.model_dump(mode="json"), weights=weights_digest(module))
    with torch.no_grad():
        module.bias[0] += 1e-6
    assert before != identity_of(weights=weights_digest(module), recipe=SETTINGS.model_dump(mode="json"))


def test_a_damaged_checkpoint_is_named(split: ImageSplit, tmp_path: Path) -> None:
    train(split, state=tmp_path)
    path = checkpoint(tmp_path)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    for content in (good[: len(good) // 2], bytes(flipped), b"\x10" + bytes(30), b"x", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"checkpoint\.safetensors: the checkpoint is damaged") as error:
            train(split, state=tmp_path)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == content
    path.write_bytes(b"")
    with pytest.raises(InputError, match="checkpoint is empty"):
        train(split, state=tmp_path)


@pytest.mark.usefixtures("every_step")
def test_divergence_keeps_the_last_good_checkpoint(split: ImageSplit, tmp_path: Path) -> None:
    class Spoiled(FloatTask):
        def loss(
            self, module: nn.Module, inputs: Tensor, labels: Tensor, portion: Portion
        ) -> tuple[Tensor, Tensor]:
            loss, logits = super().loss(module, inputs, labels, portion)
            return loss * (float("nan") if self.now == 4 else 1.0), logits

        def on_step(self, step: int, total: int) -> None:
            object.__setattr__(self, "now", step)

    with pytest.raises(InputError, match=r"the loss is nan at step 5 \(epoch 2\); lower train\.") as error:
        train(split, state=tmp_path, kind=Spoiled)
    assert f"the checkpoint of step 4 is kept in {checkpoint(tmp_path)}" in str(error.value)
    seen: list[LiveMetrics] = []
    train(split, state=tmp_path, report=seen.append)  # good: training goes on from it
    assert seen[0].step == 5
    assert all(np.isfinite(live.loss) for live in seen)


@pytest.mark.usefixtures("every_step")
def test_no_space_left(split: ImageSplit, tmp_path: Path) -> None:
    """A file size limit: the checkpoint's own write fails half-way, as on a full disk."""
    undisturbed, _ = train(split)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = 100_000

    def fill() -> None:
        assert checkpoint(tmp_path / "state").stat().st_size > small
        resource.setrlimit(resource.RLIMIT_FSIZE, (small, hard))

    try:
        with pytest.raises(
            InputError, match=r"cannot write the checkpoint: .*kept; free some space"
        ) as error:
            train(split, state=tmp_path / "state", report=at_step(4, fill))
        with pytest.raises(InputError, match="cannot write the checkpoint"):
            train(split, state=tmp_path / "none")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "state" / "train").iterdir()] == ["checkpoint.safetensors"]
    assert not (tmp_path / "none").exists()
    resumed, record = train(split, state=tmp_path / "state")
    assert record.resumed_at == (3,)
    assert same(undisturbed, resumed)


class Double(FloatTask):
    """In float64, where rounding cannot hide a wrong gradient."""

    def inputs(self, pixels: NDArray[np.uint8]) -> Tensor:
        return super().inputs(pixels).double()

    def loss(
        self, module: nn.Module, inputs: Tensor, labels: Tensor, portion: Portion
    ) -> tuple[Tensor, Tensor]:
        logits = module(inputs)
        return F.cross_entropy(logits, labels), logits

    def autocast(self, settings: Optimization) -> bool:
        return False


@pytest.mark.parametrize("devices", [2, 3])  # batches of 8: also unequal parts
def test_processes_together_train_what_one_trains(split: ImageSplit, tmp_path: Path, devices: int) -> None:
    one, alone = train(split, kind=Double)
    seen: list[LiveMetrics] = []
    several, record = train(split, kind=Double, devices=devices, report=seen.append, state=tmp_path)
    assert np.allclose(record.losses, alone.losses, rtol=1e-9, atol=0)
    assert [epoch.top1 for epoch in record.epochs] == [epoch.top1 for epoch in alone.epochs]
    for name, value in one.state_dict().items():
        assert torch.allclose(several.state_dict()[name], value, rtol=1e-6, atol=1e-9), name
    assert [live.step for live in seen if not live.ended] == list(range(1, STEPS + 1))
    again, loaded = train(split, kind=Double, devices=devices, state=tmp_path)
    assert same(several, again)
    assert loaded.resumed_at == (STEPS,)


def test_processes_in_bfloat16_and_with_corrupt_images(
    split: ImageSplit, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("red/0.jpg", "blue/1.png", "blue/3.png"):
        (image_folder / "train" / name).write_bytes(b"no image")
    monkeypatch.setattr(data, "MEMORY", 0)
    settings = SETTINGS.model_copy(update={"learning_rate": 0.005})
    _, alone = train(split, settings, skip_corrupt=True)
    _, record = train(split, settings, skip_corrupt=True, devices=2)
    assert np.allclose(record.losses, alone.losses, rtol=0.05)
    with pytest.raises(InputError, match=r"corrupt image .*skip_corrupt=true"):  # whoever meets it
        train(split, devices=2)


@dataclass(frozen=True, eq=False)
class Killed(FloatTask):
    """The second process is killed in its first step."""

    def on_step(self, step: int, total: int) -> None:
        if parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_lost(split: ImageSplit) -> None:
    with pytest.raises(MissingToolError, match="give the same command again"):
        train(split, devices=2, kind=Killed)
    train(split, devices=2)  # the next ones find a free port, and each other


def test_processes_that_cannot_be_had(split: ImageSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="8 images a step are too few for 9 processes"):
        train(split, devices=9)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match="torchrun --nproc-per-node 2"):
        train(split, devices=2)
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="leave --devices out"):
        train(split, devices=2)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_torchs(affine: bool) -> None:
    """The one that processes share, with one process."""
    torch.manual_seed(0)
    x = torch.randn(6, 5, 3, 4, dtype=torch.float64)
    results = []
    for function in (F.batch_norm, _batch_norm):
        inputs = x.clone().requires_grad_()
        running = [torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)]
        weight = torch.linspace(0.5, 2, 5, dtype=torch.float64) if affine else None
        bias = torch.linspace(-1, 1, 5, dtype=torch.float64) if affine else None
        y = function(inputs, running[0], running[1], weight, bias, True, 0.1, 1e-5)
        y.sin().sum().backward()
        results.append((y.detach(), inputs.grad, *running))
    for first, second in zip(*results, strict=True):
        assert torch.allclose(first, second, rtol=1e-10, atol=1e-12)


def test_progress_has_figures_beside_the_bar(split: ImageSplit) -> None:
    texts = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=150)
        with ConsoleProgress(console).stage("train", STEPS) as bar:
            train(split, report=show_on(bar))
        texts[terminal] = console.file.getvalue()
    assert re.search(r"train .*epoch 3/3  loss \d\.\d{3}  accuracy \d+\.\d %", texts[True])
    lines = texts[False].splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"  train: epoch {n}/3  loss ") for n, line in enumerate(lines[:3], 1))
    quiet = Console(file=io.StringIO())
    with ConsoleProgress(quiet, quiet=True).stage("train", 1) as bar:
        bar.show("x", keep=True)
    assert quiet.file.getvalue() == ""
    with SilentProgress().stage("train") as bar:
        bar.show("x", keep=True)


QUICK = (
    *("--set", "train.epochs=3", "--set", "train.batch=64", "--set", "train.flip=false"),
    *("--set", "calibration.images=32", "--set", "evaluate.images=40", "--set", "benchmark.runs=0"),
)


def command(out: Path, *more: str) -> list[str]:
    return [*more, "-m", "edge_resnet", "compress", "demo", *QUICK, "--out", str(out)]


def single(out: Path) -> list[str]:
    return [sys.executable, *command(out)]


def trained(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ("demo-trained.safetensors", "demo-tflite-int8.tflite")]


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(tmp_path: Path) -> None:
    subprocess.run(single(tmp_path / "whole"), check=True, capture_output=True)
    out = tmp_path / "killed"
    process = subprocess.Popen(single(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoint(out / "state").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)  # in the middle of an epoch
    process.kill()
    process.wait()
    assert not (out / "report.json").exists()
    subprocess.run(single(out), check=True, capture_output=True)
    assert trained(out) == trained(tmp_path / "whole")
    assert not list(out.glob(".*"))  # what the killed run left is gone
    stages = {s["name"]: s["resumed"] for s in json.loads((out / "report.json").read_text())["stages"]}
    assert stages["train"] is True
    assert stages["import"] is False
    other = subprocess.run([*single(out), "--set", "train.epochs=2"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "the checkpoint of another model, recipe or data set" in other.stderr
    assert trained(out) == trained(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_trains_what_devices_trains(tmp_path: Path) -> None:
    torchrun = command(tmp_path / "run", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ended = subprocess.run([sys.executable, *torchrun], check=True, capture_output=True, text=True)
    assert ended.stderr.count("Verified.") == 1  # one process goes on
    subprocess.run([*single(tmp_path / "forked"), "--devices", "2"], check=True, capture_output=True)
    assert trained(tmp_path / "run") == trained(tmp_path / "forked")
