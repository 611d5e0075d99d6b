"""Transformer encoder over any [B, F, D] features, in the layout of HuBERT (arXiv 2106.07447).

Every layer's hidden states are returned with the meaning `transformers.HubertModel` 5.x gives them: state 0 is
the input of the first layer, state i the output of layer i. With Pre-LN the final norm is applied to `last` only,
so `last` differs from the last hidden state (transformers 4.x put the normed output in that place).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from model.attention import MultiheadAttentionExtend


class TransformerConfig(BaseModel):
    """Sizes and dropouts of the transformer; the defaults are MERT 95M's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(12, ge=1, description="number of layers")
    width: int = Field(768, ge=1, description="features per frame, D")
    heads: int = Field(12, ge=1, description="attention heads; must divide width")
    feed_forward: int = Field(3072, ge=1, description="inner features of the feed-forward part")
    norm: Literal["post", "pre"] = Field(
        "post", description="post: norm after each residual sum; pre: before each part, and once at the end"
    )
    norm_epsilon: float = Field(1e-5, gt=0.0, description="added to the variance in every layer norm")
    position_kernel: int = Field(128, ge=1, description="kernel of the positional convolution, frames")
    position_groups: int = Field(16, ge=1, description="groups of the positional convolution; must divide width")
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="probability on input, after attention and feed-forward")
    attention_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="probability on attention weights")
    activation_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="probability inside the feed-forward part")
    layer_drop: float = Field(0.05, ge=0.0, lt=1.0, description="probability that a training step skips a layer")

    @model_validator(mode="after")
    def _divisible(self) -> "TransformerConfig":
        for name in ("heads", "position_groups"):
            if self.width % getattr(self, name):
                raise ValueError(f"width {self.width} is not a multiple of {name} {getattr(self, name)}")
        return self


@dataclass
class TransformerOutput:
    """hidden_states: layers + 1 tensors [B, F, D]; last: the output [B, F, D]."""

    hidden_states: tuple[Tensor, ...]
    last: Tensor


class PositionalConvolution(nn.Module):
    """Position from a grouped convolution over frames, weight-normed per kernel tap: [B, F, D] -> [B, F, D]."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, hidden: Tensor) -> Tensor:
        # An even kernel padded by half on both sides gives one frame too many: the last is trimmed.
        position = self.conv(hidden.transpose(1, 2))[:, :, : hidden.shape[1]]
        return nn.functional.gelu(position).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear maps with GELU between: [B, F, D] -> [B, F, D]."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.inner = nn.Linear(config.width, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.width)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.outer(self.activation_dropout(nn.functional.gelu(self.inner(hidden))))


class PostNormLayer(nn.Module):
    """norm(x + part(x)) for attention, then for feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention = MultiheadAttentionExtend(config.width, config.heads, config.attention_dropout)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, valid)))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))


class PreNormLayer(PostNormLayer):
    """x + part(norm(x)) for attention, then for feed-forward; same parameters as the Post-LN layer."""

    def forward(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), valid))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class TransformerEncoderExtend(nn.Module):
    """Positional convolution, then a stack of Post-LN or Pre-LN layers with layer drop (arXiv 1909.11556)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        layer_class = PostNormLayer if config.norm == "post" else PreNormLayer
        self.position = PositionalConvolution(config.width, config.position_kernel, config.position_groups)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(layer_class(config) for _ in range(config.layers))

    def forward(self, features: Tensor, valid: Tensor | None = None) -> TransformerOutput:
        """features [B, F, D], valid [B, F] bool (None: all frames are valid) -> TransformerOutput.

        Invalid frames are zeroed at the entrance and attended to by none, so they never change a valid one.
        Every row needs one valid frame.
        """
        if valid is not None:
            features = features.masked_fill(~valid[:, :, None], 0.0)
        hidden = features + self.position(features)
        if self.config.norm == "post":
            hidden = self.norm(hidden)
        hidden = self.dropout(hidden)

        hidden_states = [hidden]
        for layer in self.layers:
            hidden = _skip(layer, hidden) if self._drops_layer() else layer(hidden, valid)
            hidden_states.append(hidden)
        last = self.norm(hidden) if self.config.norm == "pre" else hidden
        return TransformerOutput(tuple(hidden_states), last)

    def _drops_layer(self) -> bool:
        # Drawn on the CPU: the decision must not wait for the device.
        return self.training and self.config.layer_drop > 0.0 and torch.rand(()).item() < self.config.layer_drop


def _skip(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Identity that still hangs on every parameter of the layer.

    A skipped layer then gets a zero gradient instead of none, so DDP needs no search for unused parameters and the
    optimiser treats it alike on one rank and on many. Cost: one element per parameter.
    """
    return hidden + 0.0 * sum(parameter.flatten()[0] for parameter in layer.parameters())
