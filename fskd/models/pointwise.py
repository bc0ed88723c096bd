"""1x1 convolutions by least squares, and their merging into the layer before them."""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# Directions whose share of the largest variance is less are not there at all.
RANK = 1e-12


class Pointwise(NamedTuple):
    """A 1x1 convolution.

    Attributes:
        weight: Q, (C, C), rows are outputs.
        bias: b, (C,), zeros without one.
    """

    weight: Tensor
    bias: Tensor


class Moments:
    """Sums over pixels of pairs of maps, in float64, some rows at a time.

    Attributes:
        pixels: n, the number of pixels of all rows.
    """

    def __init__(self) -> None:
        self.pixels = 0
        self._sums: tuple[Tensor, ...] = ()

    def add(
        self,
        maps: Float[Tensor, "rows channels height width"],
        goals: Float[Tensor, "rows channels height width"],
    ) -> None:
        """Takes in further rows.

        Args:
            maps: x, of the student.
            goals: y, what they should be.
        """
        x, y = (one.double().transpose(0, 1).flatten(1) for one in (maps, goals))
        parts = x.sum(1), y.sum(1), x @ x.T, y @ x.T, y.square().sum(1)
        new = not self.pixels
        kept = parts if new else tuple(a + b for a, b in zip(self._sums, parts, strict=True))
        self._sums, self.pixels = kept, self.pixels + x.shape[1]

    @property
    def mean(self) -> Tensor:
        """Of x, (C,)."""
        return self._sums[0] / self.pixels

    @property
    def covariance(self) -> Tensor:
        """Of x, (C, C)."""
        return self._sums[2] / self.pixels - torch.outer(self.mean, self.mean)

    def fit(self, bias: bool, ridge: float) -> Pointwise:
        """The layer of least sum |Q x + b - y|^2 + ridge * n v |Q - 1|^2; see ``fit_pointwise``."""
        x, y, xx, yx, _ = self._sums
        if bias:
            xx, yx = (a - torch.outer(s, x) / self.pixels for a, s in ((xx, x), (yx, y)))
        values, vectors = torch.linalg.eigh(xx)
        there = values > RANK * len(values) * values[-1].clamp(min=0)
        damped = torch.where(there, values + ridge * values.mean(), 1.0)
        inverse = (vectors * (there / damped)) @ vectors.T
        weight = torch.eye(len(x)).to(xx) + (yx - xx) @ inverse
        shift = (y - weight @ x) / self.pixels
        return Pointwise(weight, shift if bias else torch.zeros_like(shift))

    def error(self, layer: Pointwise | None = None) -> float:
        """Mean over channels and pixels of (Q x + b - y)^2; of (x - y)^2 without a layer."""
        x, y, xx, yx, yy = self._sums
        q, b = layer or Pointwise(torch.eye(len(x)).to(xx), torch.zeros_like(x))
        squares = ((q @ xx) * q).sum(1) - 2 * (q * yx).sum(1) + yy
        shifts = 2 * b * (q @ x - y) + self.pixels * b.square()
        return max(float((squares + shifts).sum()), 0.0) / (self.pixels * len(x))


def fit_pointwise(
    feat_s: Float[Tensor, "rows channels height width"],
    feat_t: Float[Tensor, "rows channels_t height width"],
    mask: Int[Tensor, " channels"],
    bias: bool = False,
    ridge: float = 0.0,
) -> Pointwise:
    """The 1x1 convolution from a student's map to the teacher's: min_Q sum |Q F_s + b - F_t|^2.

    Sums run over rows and pixels, in float64. Where F_s has less than full rank, and as far as the
    ridge says, Q stays near the identity: ridge * n v |Q - 1|^2 is added, n the pixels and v the
    mean variance (second moment without bias) of F_s. So the fit is never worse than none.

    T. Li et al., *Few Sample Knowledge Distillation for Efficient Network Compression*, CVPR 2020,
    arXiv 1812.01839, who have neither bias nor ridge.

    Args:
        feat_s: F_s.
        feat_t: F_t.
        mask: Positions of the teacher's channels that the student has.
        bias: Whether there is a b.
        ridge: Strength, at least 0.

    Example:
        >>> maps = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> found = fit_pointwise(maps, 3 * maps.flip(1), torch.tensor([0, 1]))
        >>> [[round(float(x), 6) + 0.0 for x in row] for row in found.weight]
        [[0.0, 3.0], [3.0, 0.0]]
    """
    moments = Moments()
    moments.add(feat_s, feat_t[:, mask])
    return moments.fit(bias, ridge)


@torch.no_grad()
def merge(layer: Pointwise, conv: nn.Conv2d, norm: nn.Module | None, moments: Moments) -> None:
    """Puts a 1x1 convolution into the layer before it: Q (norm(conv(z))) + b in eval mode.

    With W, k the convolution's weight and bias, and g u + h what the normalisation makes of it,
    W' = Q g W, k' = Q g k. The new running statistics are those of W' * z over the pixels seen, and
    scale and shift undo them, so that the layer computes nearly the same in train mode.

    Args:
        layer: Q and b; b must be 0 where there is neither a normalisation nor a bias.
        conv: The convolution, (C, ...), changed in place.
        norm: The affine batch normalisation behind it with running statistics, or None.
        moments: Of the outputs of both, x.
    """
    (q, b), weight = layer, conv.weight.double()
    if isinstance(norm, nn.BatchNorm2d):
        mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = norm.weight.double() / (var.double() + norm.eps).sqrt()
        offset = norm.bias.double() - scale * mean.double()
        mean.copy_(q @ (moments.mean - offset))
        var.copy_(((q @ moments.covariance) * q).sum(1).clamp(min=0))
        norm.weight.copy_((var.double() + norm.eps).sqrt())
        norm.bias.copy_(mean.double() + q @ offset + b)
        q, b = q * scale, torch.zeros_like(b)
    conv.weight.copy_(torch.einsum("oc,cikl->oikl", q, weight))
    if conv.bias is not None:
        conv.bias.copy_(q @ conv.bias.double() + b)
