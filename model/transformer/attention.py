"""Multi-head attention as one fused call, with what a layer may add to it.

Attention relaxation c (arXiv 2306.00107, MERT 330M trains with 32) is softmax(c * (w/c - max(w/c))). That equals
softmax(w) exactly and only keeps logits from overflowing in fp16. The fused kernels keep logits and softmax in fp32,
so there it has nothing to do; with `relaxation` set, an explicit path computes the logits in the dtype of its input.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mert_foundry.model.linear import Linear
from mert_foundry.model.transformer.position import rotate


class AttentionConfig(BaseModel):
    """What self-attention may add to the plain one; by default nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    window: int | None = Field(None, ge=0, description="frames to each side that a frame attends to; null: all")
    learnable_temperature: bool = Field(
        False, description="a temperature per head that is learnt, 1 at first, divides the logits"
    )
    gate: bool = Field(False, description="a learnable factor per head on what it read, 1 at first")
    relaxation: float | None = Field(
        None, ge=1.0, description="c of attention relaxation, on an explicit path safe in fp16; null: fused attention"
    )


class MultiheadAttentionExtend(nn.Module):
    """Attention with query, key, value and output projections (arXiv 1706.03762): [B, F, D] -> [B, F, D].

    Args:
        width: D. heads: H; D must be a multiple of it (ValueError).
        dropout: probability on the attention weights, in training only.
        options: window, learnable_temperature, gate, relaxation. A window masks; it does not make the fused call
            cheaper.
        rotary: turn queries and keys by their frame (RoPE).
        norm: over D, before the output projection (Sub-LN); None: none.
        source_width: features of `source` in forward; None: D.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        options: AttentionConfig = AttentionConfig(),
        rotary: bool = False,
        norm: nn.Module | None = None,
        source_width: int | None = None,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.window = options.window
        self.relaxation = options.relaxation
        self.rotary = rotary
        self.query = Linear(width, width)
        self.key = Linear(source_width or width, width)
        self.value = Linear(source_width or width, width)
        self.out = Linear(width, width)
        self.norm = nn.Identity() if norm is None else norm
        self.log_temperature = nn.Parameter(torch.zeros(heads)) if options.learnable_temperature else None
        self.gate = nn.Parameter(torch.ones(heads)) if options.gate else None

    def forward(self, hidden: Tensor, valid: Tensor | None = None, source: Tensor | None = None) -> Tensor:
        """Frames [B, F, D] read from themselves, or from another source.

        Args:
            hidden: [B, F, D].
            valid: [B, S] bool, over the source's entries; None: all. No frame attends to an invalid one. Each row
                needs a valid one; with a window an invalid frame attends to itself, so that it stays finite.
            source: [B, S, source_width]; None: `hidden`.
        """
        source = hidden if source is None else source
        query, key = self._query_and_key(hidden, source)
        value, mask = self._split(self.value(source)), self._mask(valid, hidden)
        dropout = self.dropout if self.training else 0.0
        if self.relaxation is None:
            attended = fused_attention(query, key, value, mask, dropout)
        else:
            weights = attention_weights(query, key, mask, self.relaxation)
            attended = nn.functional.dropout(weights, dropout) @ value
        if self.gate is not None:
            attended = attended * self.gate[:, None, None]
        return self.out(self.norm(attended.transpose(1, 2).flatten(2)))

    def weights(self, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
        """Attention map [B, H, F, F] that `forward` uses for the same input, before dropout; each row sums to 1."""
        query, key = self._query_and_key(hidden, hidden)
        if self.relaxation is None:
            return attention_weights(query.float(), key.float(), self._mask(valid, hidden), 1.0)
        return attention_weights(query, key, self._mask(valid, hidden), self.relaxation)

    def _query_and_key(self, hidden: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, F, d] and [B, H, S, d], turned and divided by the temperature."""
        query, key = self._split(self.query(hidden)), self._split(self.key(source))
        if self.rotary:
            query, key = rotate(query), rotate(key)
        if self.log_temperature is not None:
            query = query * torch.exp(-self.log_temperature)[:, None, None].to(query.dtype)
        return query, key

    def _mask(self, valid: Tensor | None, hidden: Tensor) -> Tensor | None:
        """Who attends to whom, in a shape that broadcasts to [B, H, F, S]; None: all to all."""
        mask = None if valid is None else valid[:, None, None, :]
        if self.window is None:
            return mask
        frames = torch.arange(hidden.shape[1], device=hidden.device)
        distance = (frames[:, None] - frames).abs()
        near = distance <= self.window
        return near if mask is None else (near & mask) | (distance == 0)

    def _split(self, projected: Tensor) -> Tensor:
        """[B, F, D] -> [B, H, F, d], d = D/H"""
        return projected.unflatten(2, (self.heads, -1)).transpose(1, 2)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(query key^T / sqrt(d)) value, query [B, H, F, d], key and value [B, H, S, d] -> [B, H, F, d].

    torch's fused CPU kernel knows no dropout, and its plain one keeps several [B, H, F, S] for the backward pass: with
    dropout they are computed again there, from the same random state.
    """
    attend = nn.functional.scaled_dot_product_attention
    if dropout and query.device.type == "cpu":
        return checkpoint(attend, query, key, value, mask, dropout, use_reentrant=False)
    return attend(query, key, value, attn_mask=mask, dropout_p=dropout)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, relaxation: float) -> Tensor:
    """softmax(c * (w/c - max(w/c))) with w = query key^T / sqrt(d) and c = `relaxation`, in the dtype of `query`.

    query [..., F, d], key [..., S, d], mask broadcasting to [..., F, S] bool (False: not attended) -> [..., F, S].
    In fp16 logits up to c * 65504 are safe, since they are divided before they are computed.
    """
    logits = (query / (relaxation * math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    largest = logits.detach().amax(dim=-1, keepdim=True)
    return torch.softmax(relaxation * (logits - largest), dim=-1)
