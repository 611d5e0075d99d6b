"""The convolution part of a Conformer layer (arXiv 2005.08100, section 2.2): [B, F, D] -> [B, F, D].

Pointwise map to 2 D, gated linear unit, depthwise convolution over frames, norm, swish, pointwise map. The paper's
batch norm is the transformer's own norm here, so that a frame depends neither on the other rows nor on padding.
"""

from torch import Tensor, nn

from mert_foundry.model.linear import Linear


class ConvolutionPart(nn.Module):
    """kernel: frames, odd; frame f sees (kernel - 1) / 2 frames to each side. norm: over D, after the convolution."""

    def __init__(self, width: int, kernel: int, norm: nn.Module):
        super().__init__()
        self.inner = Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = norm
        self.outer = Linear(width, width)

    def forward(self, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
        """hidden [B, F, D]; valid [B, F] bool, None: all.

        Invalid frames are 0 to the convolution, as what lies beyond a row.
        """
        gated = nn.functional.glu(self.inner(hidden), dim=2)
        if valid is not None:
            gated = gated.masked_fill(~valid[:, :, None], 0.0)
        mixed = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        return self.outer(nn.functional.silu(self.norm(mixed)))
