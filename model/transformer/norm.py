"""Which norm a transformer uses, and where around each part of a layer it stands."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

NormKind = Literal["layer", "rms"]
NormPlacementName = Literal["post", "pre", "deepnorm", "sub"]


class RmsNorm(nn.RMSNorm):
    """RMSNorm in the dtype of its weight: fp32 under autocast, as LayerNorm, and always the fused kernel."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.to(self.weight.dtype))


def build_norm(kind: NormKind, width: int, epsilon: float) -> nn.Module:
    """LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467) over the last axis of [..., width]."""
    return (RmsNorm if kind == "rms" else nn.LayerNorm)(width, eps=epsilon)


@dataclass(frozen=True)
class NormPlacement:
    """How a part (attention, feed-forward) is joined to the residual stream x.

    first: x + part(norm(x)), with one more norm after the last layer; otherwise norm(residual_scale * x + part(x)),
        with one more norm before the first layer.
    inner: another norm before the output projection within each part.
    residual_scale: factor on x in the sum.
    gain: Xavier gain that value, output and feed-forward weights start with; None: the weights start as all others.
    """

    first: bool
    inner: bool = False
    residual_scale: float = 1.0
    gain: float | None = None


def norm_placement(name: NormPlacementName, layers: int) -> NormPlacement:
    """The placement of an encoder of N = `layers` layers.

    post      arXiv 1706.03762, as HuBERT base
    pre       arXiv 2002.04745, as HuBERT large
    deepnorm  arXiv 2203.00555, table for encoders: residual scale (2N)^(1/4), gain (8N)^(-1/4)
    sub       Sub-LN, arXiv 2210.06423, encoders: gain sqrt(log 2N)
    """
    if name == "deepnorm":
        return NormPlacement(first=False, residual_scale=(2 * layers) ** 0.25, gain=(8 * layers) ** -0.25)
    if name == "sub":
        return NormPlacement(first=True, inner=True, gain=math.sqrt(math.log(2 * layers)))
    return NormPlacement(first=name == "pre")
