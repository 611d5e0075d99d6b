"""One layer of the transformer: attention, convolution and memory where it has them, feed-forward, each joined to the
residual.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mert_foundry.model.transformer.attention import MultiheadAttentionExtend
from mert_foundry.model.transformer.config import LayerConfig, TransformerConfig
from mert_foundry.model.transformer.convolution import ConvolutionPart
from mert_foundry.model.transformer.cross_attention import MemoryReader
from mert_foundry.model.transformer.feed_forward import build_feed_forward
from mert_foundry.model.transformer.layer_drop import skip
from mert_foundry.model.transformer.norm import build_norm, norm_placement


class TransformerLayer(nn.Module):
    """[B, F, D] -> [B, F, D]; `config` is this layer's own, `shared` what all layers have in common."""

    def __init__(self, config: LayerConfig, shared: TransformerConfig):
        super().__init__()
        self.config = config
        self.placement = norm_placement(shared.norm, shared.layers)

        def norm(width: int) -> nn.Module:
            return build_norm(shared.norm_kind, width, config.norm_epsilon)

        def inner_norm(width: int) -> nn.Module:
            return norm(width) if self.placement.inner else nn.Identity()

        self.attention = MultiheadAttentionExtend(
            shared.width,
            config.heads,
            config.attention_dropout,
            config.attention,
            rotary=shared.position == "rope",
            norm=inner_norm(shared.width),
        )
        self.attention_norm = norm(shared.width)
        self.convolution: ConvolutionPart | None = None
        if config.convolution_kernel is not None:
            self.convolution = ConvolutionPart(shared.width, config.convolution_kernel, norm(shared.width))
            self.convolution_norm = norm(shared.width)
        self.memory: MemoryReader | None = None
        if config.reads_memory:
            assert shared.memory_width is not None, "TransformerConfig asks for it"
            self.memory = MemoryReader(
                shared.width, shared.memory_width, config.heads, config.attention_dropout, norm(shared.width)
            )
        self.feed_forward = build_feed_forward(
            shared.width,
            config.feed_forward,
            shared.activation,
            config.activation_dropout,
            inner_norm(config.feed_forward),
        )
        self.feed_forward_norm = norm(shared.width)
        self.dropout = nn.Dropout(config.dropout)
        self.requires_grad_(config.trainable)

    def forward(
        self, hidden: Tensor, valid: Tensor | None, memory: Tensor | None = None, memory_valid: Tensor | None = None
    ) -> Tensor:
        """hidden [B, F, D], valid [B, F], memory [B, M, D_m], memory_valid [B, M] -> [B, F, D]."""
        attention = functools.partial(self.attention, valid=valid)
        hidden = self._joined(hidden, attention, self.attention_norm)
        if self.convolution is not None:
            convolution = functools.partial(self.convolution, valid=valid)
            hidden = self._joined(hidden, convolution, self.convolution_norm)
        if self.memory is not None:
            hidden = self.memory(hidden, memory, memory_valid)
        return self._joined(hidden, self.feed_forward, self.feed_forward_norm)

    def skip(self, hidden: Tensor) -> Tensor:
        """`hidden` itself, for a step that leaves the layer out (layer drop)."""
        return skip(self, hidden)

    def attention_map(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """The map [B, H, F, F] by which `forward` attends for the same input."""
        return self.attention.weights(self.attention_norm(hidden) if self.placement.first else hidden, valid)

    def _joined(self, hidden: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        """The residual stream with what one part adds to it, see NormPlacement."""
        if self.placement.first:
            return hidden + self.dropout(part(norm(hidden)))
        return norm(torch.add(self.dropout(part(hidden)), hidden, alpha=self.placement.residual_scale))
