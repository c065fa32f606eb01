"""The teacher's answers to a whole split, computed once and kept in a file.

Possible where augmentation leaves an image one form, or two with mirroring. All answers are there before the
first epoch, computed in batches that depend on nothing but the split: so a killed training, whose file may be
there in part, or a run that finds it complete, trains on the same bits.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.data.images import ImageSplit
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.distillation.teacher import Teacher
from edge_resnet.errors import InputError
from edge_resnet.files import atomic_write
from edge_resnet.graph.storage import graph_digest
from edge_resnet.progress import Advance
from edge_resnet.recipe import Optimization
from edge_resnet.training.checkpoint import identity_of

__all__ = ["TeacherAnswers", "worth_keeping"]

# Larger files are not made, and the teacher answers in every step: ImageNet's train split would be one.
_MOST_BYTES = 2**30
_BATCH = 128


def worth_keeping(settings: Optimization, images: int, classes: int) -> bool:
    """Whether images have few forms, each is seen more than once, and the file is not too large.

    Nothing but recipe and data decides it, so that what is trained does not depend on what lies on the disk.
    """
    few = settings.crop_padding == 0 and settings.crop_area == 1
    forms = _forms(settings)
    return few and settings.epochs > forms and images * forms * classes * 4 <= _MOST_BYTES


def _forms(settings: Optimization) -> int:
    """In which an image is seen: as it is, and mirrored."""
    return 2 if settings.flip else 1


class TeacherAnswers:
    """Logits float32 [images, forms, classes] in `folder`, in a file named after all that decides them.

    float32, as the teacher gives them: they are small beside the images. NaN: not computed yet. An image that
    cannot be decoded, and is skipped, has infinity.
    """

    def __init__(
        self,
        folder: Path,
        teacher: Teacher,
        settings: Optimization,
        images: int,
        preprocess: Preprocess,
        data: str,
    ) -> None:
        self._teacher = teacher
        self._shape = (images, _forms(settings), *teacher.graph.output_shape)
        key = identity_of(
            teacher=graph_digest(teacher.graph),
            precision=settings.precision,
            data=data,
            preprocess=preprocess.to_json(),
            shape=self._shape,
        )
        self.path = folder / f"{key[:32]}.npy"
        self._preprocess = preprocess
        self._logits = self._opened()

    @property
    def missing(self) -> int:
        """How many images have no answer yet."""
        return int(np.isnan(self._logits).any((1, 2)).sum())

    def fill(self, split: ImageSplit, device: str, skip_corrupt: bool, advance: Advance) -> None:
        """Compute what is missing. `advance` is told the images of each batch.

        Raises InputError for images that cannot be decoded, unless they are skipped.
        """
        absent = np.isnan(self._logits).any((1, 2))
        for start in range(0, len(absent), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(absent)))
            if not absent[rows].any():
                continue
            answers = np.full((len(rows), *self._shape[1:]), np.inf, np.float32)
            for batch in split.batches(rows, self._preprocess, _BATCH, skip_corrupt):
                for form in range(self._shape[1]):
                    pixels = batch.pixels[:, :, ::-1].copy() if form else batch.pixels
                    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
                    answers[batch.indices - start, form] = self._teacher.logits(images).cpu().numpy()
            self._logits[rows] = answers
            advance(len(rows))
        self._logits.flush()

    def of(self, indices: NDArray[np.int64], mirrored: NDArray[np.bool_]) -> Tensor:
        """float32 [n, classes] for images of the split."""
        return torch.from_numpy(self._logits[indices, mirrored.astype(np.int64)])

    def _opened(self) -> np.memmap:
        """The file, made anew where there is none of this shape."""
        found = self._existing()
        if found is None:
            content = io.BytesIO()
            np.save(content, np.full(self._shape, np.nan, np.float32))
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{self.path.parent}: cannot write there: {error.strerror}") from error
            atomic_write(self.path, content.getvalue())
            found = self._existing()
            assert found is not None
        return found

    def _existing(self) -> np.memmap | None:
        if not self.path.is_file():
            return None
        try:
            # r+ would fill up a file that was cut short.
            found = np.lib.format.open_memmap(self.path, mode="r")
        except (OSError, ValueError):
            return None
        good = found.shape == self._shape and found.dtype == np.float32
        return np.lib.format.open_memmap(self.path, mode="r+") if good else None
