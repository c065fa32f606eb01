"""Random changes of training images: whole batches at once, uint8 in and out.

What is drawn is apart from its application, so that several processes draw alike for the whole batch and
each changes its own images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from edge_resnet.recipe import Optimization

__all__ = ["Changes", "draw_changes"]

_ASPECTS = (3 / 4, 4 / 3)  # width / height of a crop, in units of the image's own


@dataclass(frozen=True, eq=False)
class Changes:
    """What happens to each of N images; None: nothing of the kind.

    `moves` int [2, N]: rows and columns, 0 to 2 * `padding`. `mirrored` bool [N]. `crops` float32 [N, 2, 3]:
    the affine maps from the output to the image, both spanning -1 to 1.
    """

    padding: int = 0
    moves: NDArray[np.int64] | None = None
    mirrored: NDArray[np.bool_] | None = None
    crops: NDArray[np.float32] | None = None

    def of(self, images: slice) -> Changes:
        """Those of some of the images."""
        return replace(
            self,
            moves=None if self.moves is None else self.moves[:, images],
            mirrored=None if self.mirrored is None else self.mirrored[images],
            crops=None if self.crops is None else self.crops[images],
        )

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [N, H, W, C], changed; `pixels` stays as it is."""
        if self.moves is not None:
            pixels = _moved(pixels, self.moves, self.padding)
        if self.mirrored is not None:
            pixels = np.where(self.mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
        if self.crops is not None:
            pixels = _cropped(pixels, self.crops)
        return pixels


def draw_changes(rng: np.random.Generator, count: int, settings: Optimization) -> Changes:
    """For `count` images, what the recipe says: random shifts, mirror images and crops.

    The crops are those of Szegedy et al., "Going Deeper with Convolutions", 2014 (1409.4842), but never
    larger than the image, so nothing is shrunk and nothing aliases.
    """
    moves = mirrored = crops = None
    if settings.crop_padding:
        moves = rng.integers(0, 2 * settings.crop_padding + 1, (2, count))
    if settings.flip:
        mirrored = rng.random(count) < 0.5
    if settings.crop_area < 1:
        area = rng.uniform(settings.crop_area, 1.0, count)
        aspect = np.exp(rng.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1]), count))
        # As parts of the image's sides; a crop that would stick out is cut to the image.
        part = np.minimum(np.sqrt(np.stack([area * aspect, area / aspect])), 1.0)  # [width and height, N]
        centre = rng.uniform(-1.0, 1.0, (2, count)) * (1 - part)
        crops = np.zeros((count, 2, 3), np.float32)
        crops[:, 0, 0], crops[:, 1, 1] = part
        crops[:, :, 2] = centre.T
    return Changes(settings.crop_padding, moves, mirrored, crops)


def _moved(pixels: NDArray[np.uint8], moves: NDArray[np.int64], padding: int) -> NDArray[np.uint8]:
    """What comes in at the border is black, as with torchvision's RandomCrop."""
    count, height, width, channels = pixels.shape
    border = (padding, padding)
    padded = np.pad(pixels, ((0, 0), border, border, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width, channels), axis=(1, 2, 3))
    moved: NDArray[np.uint8] = windows[np.arange(count), moves[0], moves[1], 0]
    return moved


def _cropped(pixels: NDArray[np.uint8], crops: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Each crop enlarged to the image's size: sampled bilinearly in float, and rounded to bytes again."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    grid = F.affine_grid(torch.from_numpy(crops), list(images.shape), align_corners=False)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # [N, C, H, W] -> [N, H, W, C]
    return sampled.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
