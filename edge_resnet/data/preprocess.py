"""From an image to the raw RGB bytes that an app hands over, and to what the float model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    asks for more.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    crop: Crop = "center"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(1 <= side <= 4096 for side in self.size):
            raise InputError(f"preprocess.size {list(self.size)}: give height and width, 1 to 4096 pixels")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(np.isfinite(values)):
                raise InputError(f"preprocess.{key} {list(values)}: give three numbers, for R, G and B")
        if min(self.std) <= 0:
            raise InputError(f"preprocess.std {list(self.std)}: every value must be greater than 0")
        if self.resize is not None and self.resize < 1:
            raise InputError(f"preprocess.resize {self.resize}: give the shorter side in pixels, or null")
        for key, value, choices in (
            ("crop", self.crop, get_args(Crop)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
        ):
            if value not in choices:
                raise InputError(f"preprocess.{key} {value!r}: choose one of {', '.join(choices)}")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocess:
        """From recipe or file values: `size` may be one number, lists become tuples.

        Raises InputError that names the key.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            known = ", ".join(f"preprocess.{key}" for key in cls.__dataclass_fields__)
            raise InputError(f"unknown key 'preprocess.{min(unknown)}'; known keys: {known}")
        clean = dict(values)
        try:
            size = clean["size"]
            clean["size"] = (int(size), int(size)) if isinstance(size, int) else tuple(map(int, size))
            for key in ("mean", "std"):
                clean[key] = tuple(map(float, clean[key]))
            if clean.get("resize") is not None:
                clean["resize"] = int(clean["resize"])
        except (TypeError, ValueError) as error:
            raise InputError(f"preprocess {dict(values)}: {error}") from error
        return cls(**clean)

    def to_json(self) -> dict[str, Any]:
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def to_pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Any PIL image -> uint8 [H, W, 3]. Crops as torchvision's CenterCrop does."""
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
        return (images - mean) / std


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: PIL would clip, not scale
        return Image.fromarray((np.asarray(image, np.float64) / 257).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _resize_shorter_side(image: Image.Image, shorter: int, resample: Image.Resampling) -> Image.Image:
    scale = shorter / min(image.size)
    size = tuple(shorter if side == min(image.size) else int(side * scale) for side in image.size)
    return image.resize((size[0], size[1]), resample)
