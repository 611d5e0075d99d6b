"""Knowledge from beside the audio: a memory [B, M, D_m] of text or other embeddings that chosen layers read."""

import torch
from torch import Tensor, nn

from mert_foundry.model.transformer.attention import MultiheadAttentionExtend
from mert_foundry.model.transformer.layer_drop import skip


class MemoryReader(nn.Module):
    """x + tanh(gate) * attention(norm(x), memory), gated cross-attention (arXiv 2204.14198, section 2.2).

    The gate starts at zero, so that a reader added to a model changes nothing at first, to the bit.

    Args:
        width: D of the frames. memory_width: D_m. heads, dropout: of the attention. norm: over D.
    """

    def __init__(self, width: int, memory_width: int, heads: int, dropout: float, norm: nn.Module):
        super().__init__()
        self.norm = norm
        self.attention = MultiheadAttentionExtend(width, heads, dropout, source_width=memory_width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, memory: Tensor | None, valid: Tensor | None) -> Tensor:
        """hidden [B, F, D], memory [B, M, D_m], valid [B, M] bool (None: all entries) -> [B, F, D].

        Without a memory, or in a row without a valid entry, nothing is read; what stands in invalid entries is not.
        """
        if memory is None:
            return skip(self, hidden)
        gate = torch.tanh(self.gate)
        if valid is not None:
            known = valid.any(dim=1)[:, None]
            gate = gate * known[:, :, None]
            memory = memory.masked_fill(~valid[:, :, None], 0.0)
            valid = valid | ~known  # a softmax over no entry at all would not be finite
        return hidden + gate * self.attention(self.norm(hidden), valid, memory)
