"""Where training stands, in one file that is whole or not there: STATE/NAME/checkpoint.safetensors.

Tensors and a JSON header, no pickle. Random numbers need no place in it: they derive from seed, epoch and
step (data.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from edge_resnet.errors import InputError
from edge_resnet.files import atomic_write, check_regular_file
from edge_resnet.quantization_record import EpochRecord, TrainingRecord
from edge_resnet.training.average import WeightAverage

__all__ = ["Checkpoints", "Position", "identity_of", "weights_digest"]

_FILE = "checkpoint.safetensors"
_MODULE, _OPTIMIZER, _AVERAGE = "module/", "optimizer/", "average/"


@dataclass
class Position:
    """How far training has come. Steps and epochs are counted from 0.

    `step`: within the epoch; `loss`, `correct`, `seen`, `epoch_seconds`: sums over the epoch so far; `point`:
    the loss curve's next point, as sum and number of steps. `images`: of each epoch; `total`: steps of all
    epochs.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    epoch_seconds: float = 0.0
    point: tuple[float, int] = (0.0, 0)
    losses: list[tuple[int, float]] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    images: int = 0
    total: int = 0
    seconds: float = 0.0
    resumed_at: list[int] = field(default_factory=list)
    finished: bool = False

    def record(self, name: str) -> TrainingRecord:
        return TrainingRecord(
            name,
            tuple(self.epochs),
            tuple(self.losses),
            self.images,
            self.seconds,
            resumed_at=tuple(self.resumed_at),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Position:
        position = cls(**values)
        position.point = (float(position.point[0]), int(position.point[1]))
        position.losses = [(int(step), float(loss)) for step, loss in position.losses]
        position.epochs = [EpochRecord(**epoch) for epoch in values["epochs"]]
        return position


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint of one training, `name`, below `state`. `identity` tells it from any other training."""

    state: Path
    name: str
    identity: str

    @property
    def path(self) -> Path:
        return self.state / self.name / _FILE

    def read(self) -> bytes | None:
        """The file, or None where there is none. Raises InputError: of another training, or damaged."""
        if not self.path.exists():
            return None
        check_regular_file(self.path, "checkpoint")
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.path}: cannot read the checkpoint: {error.strerror}") from error
        header = self._header(content)
        if header["identity"] != self.identity:
            raise InputError(
                f"{self.path}: the checkpoint of another model, recipe or data set; give another --out, or "
                f"delete {self.state} to train from the beginning"
            )
        return content

    def position(self, content: bytes) -> Position:
        try:
            return Position.from_json(json.loads(self._header(content)["position"]))
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(str(error)) from error

    def restore(
        self,
        content: bytes,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        """Put all of them where they were, in the memory layout that the parameters have now.

        A layout of its own would let other instructions run, with other last bits.
        """
        try:
            tensors = load(content)
            module.load_state_dict(_below(_MODULE, tensors))
            if average is not None:
                average.restore(_below(_AVERAGE, tensors))
            parameters = [] if optimizer is None else _parameters(optimizer)
            for name, value in _below(_OPTIMIZER, tensors).items():
                index, _, key = name.partition("/")
                if optimizer is not None:
                    parameter = parameters[int(index)]
                    like = parameter if value.shape == parameter.shape else value
                    optimizer.state[parameter][key] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        except (SafetensorError, RuntimeError, ValueError, LookupError) as error:
            raise self._damaged(str(error).splitlines()[0]) from error

    def write(
        self,
        module: nn.Module,
        position: Position,
        optimizer: torch.optim.Optimizer | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        """Replace the checkpoint. Raises InputError when it cannot; the one before it is then as it was."""
        tensors = {_MODULE + name: value for name, value in module.state_dict().items()}
        if average is not None:
            tensors |= {_AVERAGE + name: value for name, value in average.values.items()}
        for index, parameter in enumerate([] if optimizer is None else _parameters(optimizer)):
            assert optimizer is not None
            for key, value in optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMIZER}{index}/{key}"] = value
        # Copies: safetensors refuses tensors that share memory, as tied weights do.
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        header = {
            "identity": self.identity,
            "position": json.dumps(asdict(position)),
            "sha256": _digest(tensors),
        }
        kept = self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, save(tensors, header))
        except (InputError, OSError) as error:
            for folder in (self.path.parent, self.state):
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only where nothing is in it
            reason = getattr(error.__cause__ or error, "strerror", None) or error
            hint = "the one before it is kept; " if kept else ""
            raise InputError(
                f"{self.path}: cannot write the checkpoint: {reason}; {hint}free some space and give the "
                "same command again: it goes on from there"
            ) from error

    def clean(self) -> None:
        """Delete what a killed run left half-written."""
        for leftover in self.path.parent.glob(f".{_FILE}.*"):
            with contextlib.suppress(OSError):
                leftover.unlink()

    def _header(self, content: bytes) -> dict[str, str]:
        """The header, checked against the tensors. Raises InputError."""
        try:
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])["__metadata__"]
            good = header["sha256"] == _digest(load(content)) and isinstance(header["identity"], str)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(str(error).splitlines()[0] if str(error) else "no header") from error
        if not good:
            raise self._damaged("its tensors are not those that were written")
        return dict(header)

    def _damaged(self, why: str) -> InputError:
        return InputError(
            f"{self.path}: the checkpoint is damaged ({why}); delete it to train from the beginning"
        )


def identity_of(**parts: Any) -> str:
    """A digest of all that decides what a training comes to. The parts are values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Of all that the state dict holds: a part of the identity of what is trained from it."""
    return _digest({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for part in _parts(tensors):
        digest.update(part)
    return digest.hexdigest()


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    for name in sorted(tensors):
        yield name.encode()
        yield tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()
