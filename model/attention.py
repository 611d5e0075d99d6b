"""Multi-head self-attention as one fused call.

MERT 330M trains with "attention relaxation" 32 (arXiv 2306.00107): softmax(c * (w/c - max(w/c))). That equals
softmax(w) exactly and only keeps an fp16 softmax from overflowing. The fused kernels used here keep their softmax
in fp32, so there is nothing to relax and no setting for it.
"""

from torch import Tensor, nn


class MultiheadAttentionExtend(nn.Module):
    """Self-attention with query, key, value and output projections (arXiv 1706.03762): [B, F, D] -> [B, F, D].

    Args:
        width: D. heads: H; D must be a multiple of it (ValueError).
        dropout: probability on the attention weights, in training only.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
        """hidden [B, F, D], valid [B, F] bool (None: all frames) -> [B, F, D]. No frame attends to an invalid one."""
        attended = nn.functional.scaled_dot_product_attention(
            self._split(self.query(hidden)),
            self._split(self.key(hidden)),
            self._split(self.value(hidden)),
            attn_mask=None if valid is None else valid[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(attended.transpose(1, 2).flatten(2))

    def _split(self, projected: Tensor) -> Tensor:
        """[B, F, D] -> [B, H, F, D/H]"""
        return projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
