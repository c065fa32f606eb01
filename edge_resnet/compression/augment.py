"""Random changes of training images: whole batches at once, and the same for the same generator."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["random_resized_crops", "shifted_and_flipped"]

_ASPECTS = (3 / 4, 4 / 3)  # width / height of a crop, in units of the image's own


def shifted_and_flipped(
    pixels: NDArray[np.uint8], rng: np.random.Generator, padding: int, flip: bool
) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C]: each image moved by up to `padding` pixels either way, and mirrored or not.

    What comes in at the border is black, as with torchvision's RandomCrop.
    """
    count, height, width = pixels.shape[:3]
    rows = np.broadcast_to(np.arange(height), (count, height))
    columns = np.broadcast_to(np.arange(width), (count, width))
    if flip:
        mirrored = rng.random((count, 1)) < 0.5
        columns = np.where(mirrored, columns[:, ::-1], columns)
    if padding:
        moves = rng.integers(0, 2 * padding + 1, (2, count, 1))
        rows, columns = rows + moves[0], columns + moves[1]
        border = (padding, padding)
        pixels = np.pad(pixels, ((0, 0), border, border, (0, 0)))
    elif not flip:
        return pixels
    return pixels[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_resized_crops(images: Tensor, rng: np.random.Generator, least_area: float) -> Tensor:
    """float [N, C, H, W] -> the same shape: a crop of `least_area` to all of each image, enlarged again.

    The crops of Szegedy et al., "Going Deeper with Convolutions", 2014 (1409.4842), with bilinear sampling.
    A crop is never larger than the image, so nothing is shrunk and nothing aliases.
    """
    count = len(images)
    area = rng.uniform(least_area, 1.0, count)
    aspect = np.exp(rng.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1]), count))
    # As parts of the image's sides; a crop that would stick out is cut to the image.
    part = np.minimum(np.sqrt(np.stack([area * aspect, area / aspect])), 1.0)  # [width and height, N]
    centre = rng.uniform(-1.0, 1.0, (2, count)) * (1 - part)  # the image spans -1 to 1
    affine = np.zeros((count, 2, 3), np.float32)
    affine[:, 0, 0], affine[:, 1, 1] = part
    affine[:, :, 2] = centre.T
    grid = F.affine_grid(torch.from_numpy(affine).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
