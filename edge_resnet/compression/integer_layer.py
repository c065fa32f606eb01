"""The arithmetic of quantization-aware training: layers in integers, and their gradient.

Training does not simulate the integers, it computes with them. A tensor is held as its centred integers
q - z (as graph/reference.py holds it), which bfloat16 represents exactly: none is larger than 255. A layer is

    q = clamp(round((conv(x, w) + b) * m), low, high)        m = s_x * s_w / s_y

with w and b the integers of weight and bias. In float32 this is the reference's own arithmetic. The gradient
is the straight-through estimator (Bengio et al., 2013, 1308.3432): rounding counts as the identity, and what
was clamped gets none.

torch's own fake quantization works in real numbers, and takes (torch 2.13, CPU, bfloat16) some thirty times
as long for a tensor as the two passes of rounding and clamping here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_resnet.graph.nodes import Conv, Linear, Padding

__all__ = ["Geometry", "integer_layer", "per_channel", "round_and_clamp", "stored_like"]


_NO_BORDER = Padding()


@dataclass(frozen=True)
class Geometry:
    """How a weight meets its input. `stride` None: a fully connected layer.

    `border`: zeros that are added before, where they are not the same on both sides.
    """

    stride: tuple[int, int] | None
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    border: Padding = _NO_BORDER

    @classmethod
    def of(cls, node: Conv | Linear) -> Geometry:
        if isinstance(node, Linear):
            return cls(None)
        p = node.padding
        if p.top == p.bottom and p.left == p.right:
            return cls(node.stride, (p.top, p.left), node.dilation, node.groups)
        return cls(node.stride, (0, 0), node.dilation, node.groups, p)

    def bordered(self, x: Tensor) -> Tensor:
        return F.pad(x, self.border.sides) if self.border else x

    def sums(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x` is bordered already."""
        if self.stride is None:
            return F.linear(x, weight, bias)
        return F.conv2d(
            x, weight, bias, self.stride, self.padding, dilation=self.dilation, groups=self.groups
        )

    def gradients(
        self, gradient: Tensor, x: Tensor, weight: Tensor, needs_input: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Of the input (None where nobody needs it) and of the weight."""
        if self.stride is None:
            return (gradient @ weight if needs_input else None), gradient.T @ x
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            (needs_input, True, False),
        )
        return of_x, of_weight


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[O] -> a view that multiplies the first axis of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


class _IntegerLayer(torch.autograd.Function):
    """Convolution or fully connected layer, requantized: all scales are constants of the step.

    integer_layer(x, weight, bias, scale_w, s_x, s_y, low, high, limit, geometry) -> centred integers.
    `x` holds centred integers, float32 or bfloat16; `weight` and `bias` are real, float32; `scale_w` [O].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale_w: Tensor,
        s_x: float,
        s_y: float,
        low: float,
        high: float,
        limit: int,
        geometry: Geometry,
    ) -> Tensor:
        integers = (weight / per_channel(scale_w, weight)).round_().clamp_(-limit, limit)
        multiplier = s_x * scale_w / s_y
        shift = (bias / (s_x * scale_w)).round_() * multiplier
        zero, one = torch.zeros_like(shift), torch.ones_like(shift)
        sums = geometry.sums(x, stored_like(integers, x))
        # Times the multiplier, plus the bias, in float32 inside, in one pass over `sums`.
        q = torch.batch_norm(sums, multiplier, shift, zero, one, False, 0.0, 0.0, False)
        q = q.round_().clamp_(low, high)
        ctx.save_for_backward(x, stored_like(integers * per_channel(multiplier, weight), x), q)
        ctx.constants = (s_x, s_y, low, high, geometry)
        return q

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, scaled_weight, q = ctx.saved_tensors
        s_x, s_y, low, high, geometry = ctx.constants
        gradient = torch.ops.aten.hardtanh_backward(gradients[0], q, low, high)
        of_x, of_weight = geometry.gradients(gradient, x, scaled_weight, ctx.needs_input_grad[0])
        axes = [axis for axis in range(gradient.ndim) if axis != 1]
        of_bias = gradient.sum(axes).float() / s_y
        return of_x, of_weight.float() * (s_x / s_y), of_bias, *[None] * 7


class _RoundAndClamp(torch.autograd.Function):
    """round_and_clamp(v, low, high): the integers of real values in steps of the output."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        q = values.round().clamp_(low, high)
        ctx.save_for_backward(q)
        ctx.bounds = (low, high)
        return q

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (q,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], q, *ctx.bounds), None, None


def stored_like(weight: Tensor, x: Tensor) -> Tensor:
    """The weight in the type and order in which a convolution of `x` is fast."""
    if weight.ndim == 4:
        return weight.to(x.dtype, memory_format=torch.channels_last)
    return weight.to(x.dtype)


integer_layer: Callable[..., Tensor] = _IntegerLayer.apply
round_and_clamp: Callable[..., Tensor] = _RoundAndClamp.apply
