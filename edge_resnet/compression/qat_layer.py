"""A convolution or fully connected layer whose weights are trained as integers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_resnet.compression.integer_layer import Geometry, integer_layer, per_channel, stored_like
from edge_resnet.compression.quantize import MAX_BIAS, integer_weights
from edge_resnet.compression.scales import MIN_SCALE
from edge_resnet.graph.nodes import Conv, FloatWeights, IntWeights, Linear
from edge_resnet.recipe import Qat
from edge_resnet.training.ranks import var_mean_over_ranks

__all__ = ["QatLayer", "snapped"]

_BATCH_NORM_MOMENTUM = 0.1
_EPSILON = 1e-5


class QatLayer(nn.Module):
    """Weight and bias in real numbers; `limit` is the largest integer of a weight.

    With `batch_norm: trained`, the weight is that before batch normalization: gamma / deviation is folded
    into it in every step, so that the integers are those that will be shipped (Jacob et al., 2017,
    1712.05877, section 3.2). While batch statistics are used, the folded weight has the running deviation,
    and the sums are normalized with the batch's: one convolution, not two.
    """

    mean: Tensor
    first_scale: Tensor
    variance: Tensor
    statistics_fixed: Tensor

    def __init__(self, node: Conv | Linear, settings: Qat, limit: int) -> None:
        super().__init__()
        assert isinstance(node.weights, FloatWeights)
        self.geometry, self.limit = Geometry.of(node), limit
        self.weight = nn.Parameter(torch.tensor(node.weights.weight))
        self.bias = nn.Parameter(torch.tensor(node.weights.bias))
        self.normalized = settings.batch_norm == "trained" and isinstance(node, Conv)
        self._observing = False
        if self.normalized:
            self.gamma = nn.Parameter(torch.ones_like(self.bias))
            self.register_buffer("mean", torch.zeros_like(self.bias))
            self.register_buffer("variance", torch.ones_like(self.bias))
            self.register_buffer("statistics_fixed", torch.tensor(True))
        self.learned = settings.scales == "learned"
        if self.learned:
            self.log_scale = nn.Parameter(torch.zeros_like(self.bias))
            self.register_buffer("first_scale", self._range_scale(*self.folded(), 1.0))

    @property
    def is_fixed(self) -> bool:
        """Whether the step's scales and statistics are constants."""
        return not (self._observing or self.learned or (self.normalized and not bool(self.statistics_fixed)))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with batch normalization folded in."""
        if not self.normalized:
            return self.weight, self.bias
        factor = self.gamma / (self.variance + _EPSILON).sqrt()
        return self.weight * per_channel(factor, self.weight), self.bias - self.mean * factor

    def fixed(self, x: Tensor, s_x: float | Tensor, s_y: float | Tensor, low: float, high: float) -> Tensor:
        """Centred integers; both scales are numbers."""
        weight, bias = self.folded()
        scale = self._range_scale(weight, bias, float(s_x))
        x = self.geometry.bordered(x)
        return integer_layer(
            x, weight, bias, scale, float(s_x), float(s_y), low, high, self.limit, self.geometry
        )

    def unrounded(self, x: Tensor, s_x: float | Tensor, s_y: float | Tensor) -> Tensor:
        """The output in steps of s_y before it is rounded; scales may have gradients."""
        weight, bias = self.folded()
        scale = self._weight_scale(weight, bias, float(torch.as_tensor(s_x).detach()))
        integers = _rounded((weight / per_channel(scale, weight)).clamp(-self.limit, self.limit))
        sums = self.geometry.sums(self.geometry.bordered(x), stored_like(integers, x))
        unit = s_x * scale
        if self._observing:
            self._observe(sums, unit)
        if self.normalized and not bool(self.statistics_fixed):
            return self._with_batch_statistics(sums, unit, s_y)
        multiplier = unit / s_y
        shift = _rounded(bias / unit) * multiplier
        zero, one = torch.zeros_like(shift), torch.ones_like(shift)
        return F.batch_norm(sums, zero, one, multiplier, shift, False, 0.0, 0.0)

    def integers(self, s_x: float) -> IntWeights:
        """What is shipped, for an input of this scale."""
        weight, bias = (value.detach().float().cpu().contiguous() for value in self.folded())
        scale = self._weight_scale(weight, bias, s_x).detach().cpu().numpy()
        return integer_weights(FloatWeights(weight.numpy(), bias.numpy()), s_x, scale, self.limit)

    def freeze_batch_norm(self) -> None:
        if self.normalized:
            self.statistics_fixed.fill_(True)

    def observe_statistics(self, on: bool) -> None:
        """Collect mean and variance of the layer's sums; at the end, batch normalization is put behind it."""
        if on:
            self._observing = self.normalized
            self._seen: list[tuple[Tensor, Tensor]] = []
            return
        if self._observing and self._seen:
            self._observing = False
            means, variances = (torch.stack(values) for values in zip(*self._seen, strict=True))
            with torch.no_grad():
                self.mean.copy_(means.mean(0))
                self.variance.copy_(variances.mean(0) + means.var(0, unbiased=False))
                self.gamma.copy_((self.variance + _EPSILON).sqrt())
                self.bias.add_(self.mean)
            self.statistics_fixed.fill_(False)
        self._observing = False

    def _with_batch_statistics(self, sums: Tensor, unit: Tensor, s_y: float | Tensor) -> Tensor:
        deviation = (self.variance + _EPSILON).sqrt()
        # The sums in units of the convolution before batch normalization.
        unit = (unit * deviation / self.gamma).detach()
        with torch.no_grad():
            variance, mean = var_mean_over_ranks(sums.float())
            self.mean += _BATCH_NORM_MOMENTUM * (mean * unit - self.mean)
            self.variance += _BATCH_NORM_MOMENTUM * (variance * unit**2 - self.variance)
        gamma, beta = self.gamma * unit.sign() / s_y, self.bias / s_y
        return F.batch_norm(sums, None, None, gamma, beta, True, 0.0, _EPSILON)

    def _observe(self, sums: Tensor, unit: Tensor) -> None:
        variance, mean = var_mean_over_ranks(sums.float())
        self._seen.append((mean * unit, variance * unit**2))

    def _weight_scale(self, weight: Tensor, bias: Tensor, s_x: float) -> Tensor:
        if not self.learned:
            return self._range_scale(weight, bias, s_x)
        learned = self.first_scale * self.log_scale.exp()
        return learned + (snapped(learned) - learned).detach()

    @torch.no_grad()
    def _range_scale(self, weight: Tensor, bias: Tensor, s_x: float) -> Tensor:
        """[O]: as weight_scales chooses it, so that what is trained is what is shipped."""
        largest = weight.detach().abs().flatten(1).amax(1).double() / self.limit
        return snapped(torch.maximum(largest, bias.detach().abs().double() / (s_x * MAX_BIAS)))


def snapped(scale: Tensor) -> Tensor:
    """snap_scale on the device where the scales are: the next float16 number at or above each, as float32."""
    scale = scale.detach().double().clamp_min(MIN_SCALE)
    half = scale.half()
    above = (half.view(torch.int16) + 1).view(torch.float16)  # the next one, for positive numbers
    return torch.where(half.double() < scale, above, half).float()


def _rounded(values: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity."""
    return values + (values.round() - values).detach()
