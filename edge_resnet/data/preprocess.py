"""From an image to the raw RGB bytes that an app hands over, and to what the float model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_resnet.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Interpolation", "Preprocess"]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Crop = Literal["center", "none"]
Channels = Literal["rgb", "bgr"]

_LARGEST_SIDE = 4096
_LARGEST_RESIZE = 2 * _LARGEST_SIDE
# Below this, 1 / std times a float32 pixel is no number to calibrate on: a slip of the pen, not a data set.
_SMALLEST_STD = 1e-6

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side to `resize`, crop the centre to `size` (height, width), normalize.

    `resize` None: the shorter side goes straight to the crop's. `crop` "none": stretch to `size` instead.
    `mean` and `std` apply to RGB / 255. An image that already has `size` is taken as it is, unless `resize`
    asks for more. `channels` "bgr": the model takes blue first (as the ResNets of keras.applications do);
    `mean` and `std` are for R, G and B all the same, and apps hand over RGB all the same.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    crop: Crop = "center"
    interpolation: Interpolation = "bilinear"
    channels: Channels = "rgb"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(1 <= side <= _LARGEST_SIDE for side in self.size):
            raise InputError(
                f"preprocess.size {list(self.size)}: give height and width, 1 to {_LARGEST_SIDE} pixels"
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(np.isfinite(values)):
                raise InputError(f"preprocess.{key} {list(values)}: give three numbers, for R, G and B")
        if min(self.std) < _SMALLEST_STD:
            raise InputError(f"preprocess.std {list(self.std)}: every value must be at least {_SMALLEST_STD}")
        if self.resize is not None and not 1 <= self.resize <= _LARGEST_RESIZE:
            raise InputError(
                f"preprocess.resize {self.resize}: give the shorter side in pixels, "
                f"1 to {_LARGEST_RESIZE}, or null"
            )
        for key, value, choices in (
            ("crop", self.crop, get_args(Crop)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("channels", self.channels, get_args(Channels)),
        ):
            if value not in choices:
                raise InputError(f"preprocess.{key} {value!r}: choose one of {', '.join(choices)}")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocess:
        """From recipe or file values: `size` may be one number, lists become tuples.

        Raises InputError that names the key: unknown, missing, or of another type.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            known = ", ".join(f"preprocess.{key}" for key in cls.__dataclass_fields__)
            raise InputError(f"unknown key 'preprocess.{min(unknown)}'; known keys: {known}")
        missing = [key for key in ("size", "mean", "std") if key not in values]
        if missing:
            raise InputError(f"preprocess.{missing[0]} is missing")
        clean = dict(values)
        size = clean["size"]
        sides = size if isinstance(size, list | tuple) else (size, size)
        clean["size"] = tuple(_whole("size", side) for side in sides)
        for key in ("mean", "std"):
            clean[key] = _numbers(key, clean[key])
        if clean.get("resize") is not None:
            clean["resize"] = _whole("resize", clean["resize"])
        return cls(**clean)

    def to_json(self) -> dict[str, Any]:
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def to_pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Any PIL image -> uint8 [H, W, 3]. Resizes and crops as torchvision's Resize and CenterCrop do.

        Raises ValueError for a strip so long that resizing it would not fit into memory.
        """
        image = _rgb(image)
        height, width = self.size
        resample = _RESAMPLING[self.interpolation]
        if self.crop == "none":
            if image.size != (width, height):
                image = image.resize((width, height), resample)
            return np.asarray(image, np.uint8)
        shorter = self.resize or max(height, width)
        if (self.resize or image.size != (width, height)) and min(image.size) != shorter:
            image = _resize_shorter_side(image, shorter, resample)
        if image.width < width or image.height < height:
            image = _resize_shorter_side(image, max(height, width), resample)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return np.asarray(image.crop((left, top, left + width, top + height)), np.uint8)

    def normalized(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], as the model was trained."""
        import torch

        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        images: Tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        normal = (images - mean) / std
        return normal.flip(1) if self.channels == "bgr" else normal

    def as_model_sees(self) -> Preprocess:
        """With mean and std in the order of the model's own channels."""
        if self.channels == "rgb":
            return self
        return replace(self, mean=self.mean[::-1], std=self.std[::-1])

    def in_model_order(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [N, H, W, 3] with its channels as the model takes them."""
        return pixels[..., ::-1] if self.channels == "bgr" else pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: PIL would clip, not scale
        grey = np.clip(np.asarray(image, np.float64) / 257, 0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _resize_shorter_side(image: Image.Image, shorter: int, resample: Image.Resampling) -> Image.Image:
    short, long = min(image.size), max(image.size)
    # In torchvision's order: long * (shorter / short) is one pixel less for some sizes (49x98 to 32).
    longer = int(shorter * long / short)
    if Image.MAX_IMAGE_PIXELS is not None and shorter * longer > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels become {shorter}x{longer} after resizing")
    return image.resize((shorter, longer) if image.width <= image.height else (longer, shorter), resample)


def _whole(key: str, value: Any) -> int:
    """224 or 224.0; what is no whole number (true, .inf, 31.7, "224") is refused rather than rounded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
        raise InputError(f"preprocess.{key} {value!r}: give a whole number of pixels")
    return int(value)


def _numbers(key: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) for value in values):
        raise InputError(f"preprocess.{key} {values!r}: give three numbers, for R, G and B")
    return tuple(map(float, values))
