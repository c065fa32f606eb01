"""The processes that train together: what each must know of the others.

Gradients and batch statistics are those of the whole batch, so several processes train what one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edge_resnet.errors import MissingToolError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Ranks", "mean_over_ranks", "var_mean_over_ranks"]


class Ranks:
    """This process, number `rank` of `world`, on a launched Fabric."""

    _training: ClassVar[Ranks | None] = None

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.rank, self.world, self.device = fabric.global_rank, fabric.world_size, fabric.device

    @contextmanager
    def together(self) -> Iterator[None]:
        """In this block batch normalization, and the functions below, see the images of all processes."""
        before = Ranks._training
        with ExitStack() as stack:
            if self.world > 1:
                Ranks._training = self
                stack.enter_context(_WholeBatchNorm())
            try:
                yield
            finally:
                Ranks._training = before

    def autocast(self) -> AbstractContextManager[Any]:
        return self._fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        self._fabric.backward(loss)

    def sum(self, values: Tensor) -> Tensor:
        """Over all processes, in place."""
        if self.world > 1:
            self._reached(lambda: self._fabric.all_reduce(values, reduce_op="sum"))
        return values

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Each gradient becomes its sum over all processes.

        Not DistributedDataParallel: it wants the same parameters in every step, and freezing takes some away.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat, end = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients])), 0
        for gradient in gradients:
            start, end = end, end + gradient.numel()
            gradient.copy_(flat[start:end].view(gradient.shape))

    def from_first(self, content: bytes | None) -> bytes | None:
        """What process 0 has."""
        if self.world == 1:
            return content
        received: bytes | None = self._reached(lambda: self._fabric.broadcast(content))
        return received

    def _reached(self, collective: Callable[[], Any]) -> Any:
        try:
            return collective()
        except RuntimeError as error:
            raise MissingToolError(
                f"process {self.rank} of {self.world}: another training process was lost "
                f"({str(error).splitlines()[0]}); give the same command again: it goes on from the checkpoint"
            ) from error


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over all processes while `fit` trains on several, with its gradient; else `values`."""
    ranks = Ranks._training
    return values if ranks is None else _sum(values, ranks) / ranks.world


def var_mean_over_ranks(values: Tensor) -> tuple[Tensor, Tensor]:
    """Variance (not corrected) and mean of each channel of [N, C, ...], over the batch of all processes."""
    variance, mean, _ = _var_mean(values)
    return variance, mean


def _var_mean(values: Tensor) -> tuple[Tensor, Tensor, float]:
    """And how many values each channel has in all processes."""
    dims = [0, *range(2, values.ndim)]
    ranks, count = Ranks._training, values.numel() / values.shape[1]
    if ranks is None:
        variance, mean = torch.var_mean(values, dims, correction=0)
        return variance, mean, count
    totals = _sum(torch.cat([values.sum(dims), values.new_full((1,), count)]), ranks)
    count = float(totals[-1].detach())
    mean = totals[:-1] / count
    centred = values - mean.view(1, -1, *[1] * (values.ndim - 2))
    return _sum(centred.square().sum(dims), ranks) / count, mean, count


def _sum(values: Tensor, ranks: Ranks) -> Tensor:
    result: Tensor = _Sum.apply(values, ranks)  # type: ignore[no-untyped-call]
    return result


class _Sum(torch.autograd.Function):
    """Every process's loss depends on every process's values, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(gradients[0].clone(memory_format=torch.contiguous_format)), None


class _WholeBatchNorm(TorchFunctionMode):
    """F.batch_norm with the statistics of all processes' images (torch's SyncBatchNorm knows no CPU)."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        replacement = _batch_norm if function is F.batch_norm else function
        return replacement(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm, over all processes where it takes the batch's statistics."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    variance, mean, count = _var_mean(wide)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.detach(), momentum)
            running_var.lerp_(variance.detach() * (count / (count - 1)), momentum)
    factor = (variance + eps).rsqrt()
    factor = factor if weight is None else factor * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    shape = (1, -1, *[1] * (input.ndim - 2))
    return (wide * factor.view(shape) + shift.view(shape)).to(input.dtype)
