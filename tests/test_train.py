"""Training: it learns, repeats itself, and says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_resnet.data.images import ImageSplit, open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.frontends.weights import load_into, load_state_dict_file
from edge_resnet.models.zoo import ZOO
from edge_resnet.progress import Advance
from edge_resnet.quantization_record import TrainingRecord
from edge_resnet.recipe import Recipe, Train, load_recipe
from edge_resnet.training import FloatTask, data, fit, one_cycle, save_trained, trained_path
from edge_resnet.training.augment import Changes, draw_changes

SMALL = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)
DEMO = Preprocess.from_json(ZOO["demo"].preprocess)
QUICK = Train(epochs=3, batch=8, learning_rate=0.05, crop_padding=2, label_smoothing=0.1)


def seeded(name: str = "demo", classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = ZOO[name].build(classes)
    return module


def train(
    module: nn.Module,
    split: ImageSplit,
    preprocess: Preprocess,
    settings: Train,
    seed: int,
    advance: Advance = lambda images: None,
    skip_corrupt: bool = False,
) -> TrainingRecord:
    task = FloatTask(module, preprocess, settings)
    return fit(task, split, preprocess, settings, seed, advance=advance, skip_corrupt=skip_corrupt)


def epoch_losses(record: TrainingRecord) -> list[float]:
    return [epoch.loss for epoch in record.epochs]


def images_of(split: ImageSplit, preprocess: Preprocess) -> tuple[Tensor, np.ndarray]:
    (batch,) = split.batches(np.arange(len(split)), preprocess, len(split))
    return preprocess.normalized(batch.pixels), batch.labels


def accuracy(module: nn.Module, split: ImageSplit, preprocess: Preprocess) -> float:
    images, labels = images_of(split, preprocess)
    with torch.inference_mode():
        return float((module(images).argmax(1).numpy() == labels).mean())


def test_digits_are_learned() -> None:
    digits, module, steps = open_images("demo"), seeded(classes=10), []
    count = len(digits.split("train"))
    settings = Train(epochs=5, batch=32, flip=False, crop_padding=2)
    record = train(module, digits.split("train"), DEMO, settings, 0, steps.append)
    losses = epoch_losses(record)
    assert losses[-1] < 0.5 * losses[0]
    assert record.epochs[-1].top1 > 0.85 > 0.6 > record.epochs[0].top1
    assert accuracy(module, digits.split("val"), DEMO) > 0.85
    assert sum(steps) == 5 * count
    assert (record.images, record.seconds > 0) == (count // 32 * 32, True)
    assert 100 < len(record.losses) <= 300
    assert record.losses[-1][0] == 5 * (count // 32)
    assert not module.training
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in module.parameters())


@pytest.mark.parametrize(
    "name", ["resnet29_bottleneck", "wide_resnet16_4", "resnext20_8x8d", "mobile_resnet20", "resnet18"]
)
def test_every_kind_learns_colours(name: str, image_folder: Path) -> None:
    module, split = seeded(name), open_images(str(image_folder)).split("train")
    settings = Train(epochs=4, batch=8, learning_rate=0.02, crop_padding=1)
    losses = epoch_losses(train(module, split, SMALL, settings, 0))
    assert losses[-1] < 0.8 * losses[0]


def test_training_goes_on_from_given_weights(image_folder: Path) -> None:
    split = open_images(str(image_folder)).split("train")
    module = seeded()
    train(module, split, SMALL, QUICK.model_copy(update={"epochs": 6}), 0)
    again = train(module, split, SMALL, QUICK.model_copy(update={"learning_rate": 0.005}), 1)
    scratch = train(seeded(), split, SMALL, QUICK, 1)
    assert again.epochs[0].loss < 0.7 * scratch.epochs[0].loss


def test_the_seed_decides(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_images(str(image_folder)).split("train")
    settings = QUICK.model_copy(update={"epochs": 1, "crop_area": 0.5})

    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed + 5)
        module = nn.Sequential(seeded(), nn.Dropout(0.2))
        before = torch.random.get_rng_state()
        train(module, split, SMALL, settings, seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        return list(module.state_dict().values())

    first, second, other = weights(0), weights(0), weights(1)
    assert all(map(torch.equal, first, second))
    assert not all(map(torch.equal, first, other))
    monkeypatch.setattr(data, "MEMORY", 0)  # decoded again in every epoch: the same images
    assert all(map(torch.equal, first, weights(0)))


def test_no_epochs_leave_the_model_alone(image_folder: Path) -> None:
    module, split = seeded(), open_images(str(image_folder)).split("train")
    before = [tensor.clone() for tensor in module.state_dict().values()]
    assert train(module, split, SMALL, Train(), 0).losses == ()
    assert all(map(torch.equal, before, module.state_dict().values()))


def test_divergence_says_what_to_do(image_folder: Path) -> None:
    split = open_images(str(image_folder)).split("train")
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"diverged: .*lower train\.learning_rate \(now 1e\+30\)") as error:
        train(module, split, SMALL, QUICK.model_copy(update={"learning_rate": 1e30, "epochs": 9}), 0)
    assert "\n" not in str(error.value)
    assert not module.training
    module = seeded()  # the last step spoils the weights, and no loss is computed after it
    with pytest.raises(InputError, match="not finite"):
        train(
            module,
            split,
            SMALL,
            Train(epochs=1, batch=24, learning_rate=1e38, weight_decay=1e10, warmup=0),
            0,
        )


class Constant(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.ones(1, 1)), answer

    def forward(self, x: Tensor) -> object:
        return self.answer


def test_models_that_do_not_fit(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_images(str(image_folder)).split("train")
    for module, message in (
        (seeded(classes=2), r"answers \[8, 2\] .*labels up to 2: .*one logit for each class"),
        (Constant([1]), "answers list"),
        (nn.Flatten(), "no parameters"),
    ):
        with pytest.raises(InputError, match=message):
            train(module, split, SMALL, QUICK, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingToolError, match="no CUDA device"):
        train(seeded(), split, SMALL, QUICK.model_copy(update={"device": "cuda"}), 0)


def test_corrupt_images(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("red/0.jpg", "blue/1.png"):
        (image_folder / "train" / name).write_bytes(b"no image")
    split = open_images(str(image_folder)).split("train")
    with pytest.raises(InputError, match="corrupt image"):
        train(seeded(), split, SMALL, QUICK, 0)
    assert train(seeded(), split, SMALL, QUICK, 0, skip_corrupt=True).images == 24  # 22 can be decoded
    assert len(split.skipped) == 2
    steps: list[int] = []
    monkeypatch.setattr(data, "MEMORY", 0)
    train(seeded(), split, SMALL, QUICK, 0, steps.append, skip_corrupt=True)
    assert sum(steps) == 3 * 24
    for file in (image_folder / "train").rglob("*.*"):
        file.write_bytes(b"no image")
    for memory in (0, 2**30):
        monkeypatch.setattr(data, "MEMORY", memory)
        with pytest.raises(InputError, match=r"no image of the train split|0 images to train on"):
            train(seeded(), split, SMALL, QUICK, 0, skip_corrupt=True)


def test_weights_are_saved_and_read_again(tmp_path: Path) -> None:
    module = seeded()
    path = trained_path(tmp_path, "demo")
    assert path.name == "demo-trained.safetensors"
    save_trained(module, path)
    first = path.read_bytes()
    save_trained(module, path)
    assert path.read_bytes() == first
    other: nn.Module = ZOO["demo"].build(3)
    load_into(other, load_state_dict_file(path), str(path))
    assert all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        save_trained(module, path)


def test_the_schedule() -> None:
    assert one_cycle(0.0, 0.25) == pytest.approx(0.04)
    assert one_cycle(0.25, 0.25) == one_cycle(0.0, 0.0) == pytest.approx(1.0)
    assert one_cycle(1.0, 0.25) == pytest.approx(0.0)
    values = [one_cycle(step / 100, 0.3) for step in range(101)]
    assert values[:31] == sorted(values[:31])
    assert values[30:] == sorted(values[30:], reverse=True)


def test_batch_normalization_and_biases_do_not_decay(image_folder: Path) -> None:
    split = open_images(str(image_folder)).split("train")
    module = seeded()
    for parameter in module.parameters():  # no gradient: what changes is decay alone
        parameter.register_hook(torch.zeros_like)
    before = {name: value.clone() for name, value in module.named_parameters()}
    train(module, split, SMALL, QUICK.model_copy(update={"weight_decay": 0.1}), 0)
    for name, value in module.named_parameters():
        assert torch.equal(value, before[name]) == (value.ndim == 1), name


def test_shifts_and_flips_are_whole_pixels() -> None:
    rng = np.random.default_rng(0)
    pixels = np.random.default_rng(1).integers(1, 256, (64, 5, 7, 3), np.uint8)
    none = Train(crop_padding=0, flip=False)
    assert draw_changes(rng, 64, none).apply(pixels) is pixels
    flipped = draw_changes(rng, 64, Train(crop_padding=0)).apply(pixels)
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, pixels, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(flipped, pixels, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48
    moved = draw_changes(rng, 64, Train(crop_padding=1, flip=False)).apply(pixels)
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = set()
    for image, source in zip(moved, padded, strict=True):
        places = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if np.array_equal(image, source[top : top + 5, left : left + 7])
        ]
        assert len(places) == 1
        found.update(places)
    assert len(found) == 9


def crops_of(pixels: np.ndarray, area: float) -> np.ndarray:
    settings = Train(crop_padding=0, flip=False, crop_area=area)
    return draw_changes(np.random.default_rng(0), len(pixels), settings).apply(pixels)


def test_crops_stay_inside() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 32).round().astype(np.uint8)[:, None], (200, 32, 32, 1)).copy()
    crops = crops_of(ramp, 0.25)
    assert (crops.shape, crops.dtype) == (ramp.shape, np.uint8)
    spans = (crops[:, 0, -1, 0].astype(int) - crops[:, 0, 0, 0]) / 255
    assert spans.min() > 0.4  # a quarter of the area at 3:4 is 0.43 of the width
    assert spans.max() > 0.9
    centre = Changes(crops=np.array([[[0.5, 0, 0], [0, 0.5, 0]]], np.float32)).apply(ramp[:1])
    expected = np.interp(np.arange(32) / 2 + 7.75, np.arange(32), ramp[0, 0, :, 0])
    assert np.abs(centre[0, 5, :, 0] - expected).max() <= 0.51  # a byte is the nearest one


def test_a_part_of_the_batch_changes_like_the_whole() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3), np.uint8)
    changes = draw_changes(np.random.default_rng(0), 9, Train(crop_padding=2, crop_area=0.5))
    whole, part = changes.apply(pixels), slice(4, 7)
    assert np.array_equal(changes.of(part).apply(pixels[part]), whole[part])


def test_the_recipe_section() -> None:
    assert Recipe().train.epochs == 0
    recipe = load_recipe(None, ["train.epochs=2", "train.flip=false"])
    assert (recipe.train.epochs, recipe.train.flip) == (2, False)
    for setting in ("train.epochs=-1", "train.learning_rate=0", "train.learning_rate=.inf", "train.batch=1"):
        with pytest.raises(InputError, match=setting.partition("=")[0]):
            load_recipe(None, [setting])
    with pytest.raises(InputError, match=r"did you mean 'train\.epochs'"):
        load_recipe(None, ["train.epoch=1"])
