"""The feed-forward part of a layer: [B, F, D] -> [B, F, D]."""

from typing import Literal

from torch import Tensor, nn

from mert_foundry.model.linear import Linear

Activation = Literal["gelu", "relu", "swiglu"]


class FeedForward(nn.Module):
    """Two linear maps with GELU or ReLU between."""

    def __init__(self, width: int, inner: int, activation: Activation, dropout: float, norm: nn.Module):
        """inner: features between the maps. dropout: probability on them. norm: over them, before the outer map."""
        super().__init__()
        self.inner = Linear(width, inner)
        self.outer = Linear(inner, width)
        self.activation = nn.functional.relu if activation == "relu" else nn.functional.gelu
        self.activation_dropout = nn.Dropout(dropout)
        self.norm = norm

    def forward(self, hidden: Tensor) -> Tensor:
        return self.outer(self.norm(self.activation_dropout(self._activate(hidden))))

    def _activate(self, hidden: Tensor) -> Tensor:
        return self.activation(self.inner(hidden))


class GatedFeedForward(FeedForward):
    """SwiGLU (arXiv 2002.05202): the inner features are multiplied by SiLU of a third linear map."""

    def __init__(self, width: int, inner: int, activation: Activation, dropout: float, norm: nn.Module):
        super().__init__(width, inner, activation, dropout, norm)
        self.gate = Linear(width, inner)

    def _activate(self, hidden: Tensor) -> Tensor:
        return nn.functional.silu(self.gate(hidden)) * self.inner(hidden)


def build_feed_forward(width: int, inner: int, activation: Activation, dropout: float, norm: nn.Module) -> FeedForward:
    """The class for an activation; arguments as in FeedForward."""
    feed_forward_class = GatedFeedForward if activation == "swiglu" else FeedForward
    return feed_forward_class(width, inner, activation, dropout, norm)
