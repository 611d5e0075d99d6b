"""Transformer encoder over any [B, F, D] features; by default in the layout of HuBERT (arXiv 2106.07447).

Every layer's hidden states are returned with the meaning `transformers.HubertModel` 5.x gives them: state 0 is
the input of the first layer, state i the output of layer i. Where a norm stands before each part (pre, sub), the
final norm is applied to `last` only, so `last` differs from the last hidden state (transformers 4.x put the normed
output in that place).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mert_foundry.model.transformer.config import TransformerConfig
from mert_foundry.model.transformer.initialisation import initialise
from mert_foundry.model.transformer.layer import TransformerLayer
from mert_foundry.model.transformer.layer_drop import bernoulli
from mert_foundry.model.transformer.norm import build_norm, norm_placement
from mert_foundry.model.transformer.position import PositionalConvolution


@dataclass
class TransformerOutput:
    """hidden_states: layers + 1 tensors [B, F, D]; last: the output [B, F, D].

    attention: each layer's map [B, H, F, F], before dropout; None if they were not asked for.
    """

    hidden_states: tuple[Tensor, ...]
    last: Tensor
    attention: tuple[Tensor, ...] | None = None


class TransformerEncoderExtend(nn.Module):
    """Position, then a stack of layers with layer drop, over wave features, mel frames or token embeddings alike."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.norm_first = norm_placement(config.norm, config.layers).first
        self.position: nn.Module
        if config.position == "convolution":
            self.position = PositionalConvolution(config.width, config.position_kernel, config.position_groups)
        else:
            self.position = nn.Identity()
        self.norm = build_norm(config.norm_kind, config.width, config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(layer, config) for layer in config.layer_configs())
        initialise(self)

    def forward(
        self,
        features: Tensor,
        valid: Tensor | None = None,
        memory: Tensor | None = None,
        memory_valid: Tensor | None = None,
        return_attention: bool = False,
    ) -> TransformerOutput:
        """Encode a batch of features.

        Args:
            features: [B, F, D].
            valid: [B, F] bool; None: all frames. Invalid frames are zeroed at the entrance and attended to by none,
                so they never change a valid one. Every row needs one valid frame.
            memory: [B, M, D_m] for the layers with `reads_memory`; None: nothing to read.
            memory_valid: [B, M] bool; None: all entries. A row may have none.
            return_attention: compute each layer's attention map too, from its input and beside the normal path;
                a layer that layer drop skips gets the map it would have had.

        Raises ValueError when a memory is given to a model without one, or of another width.
        """
        self._check_memory(memory)
        if valid is not None:
            features = features.masked_fill(~valid[:, :, None], 0.0)
        hidden = self.position(features)
        if not self.norm_first:
            hidden = self.norm(hidden)
        hidden = self.dropout(hidden)

        hidden_states = [hidden]
        layers = cast(Sequence[TransformerLayer], self.layers)
        for number, layer in enumerate(layers, start=1):
            hidden_states.append(self._run(number, layer, hidden_states[-1], valid, memory, memory_valid))
        last = self.norm(hidden_states[-1]) if self.norm_first else hidden_states[-1]
        attention = None
        if return_attention:
            attention = tuple(layer.attention_map(state, valid) for layer, state in zip(layers, hidden_states))
        return TransformerOutput(tuple(hidden_states), last, attention)

    def _run(self, number: int, layer: TransformerLayer, hidden: Tensor, *context: Tensor | None) -> Tensor:
        """Layer `number`, counted from 1."""
        every = int(self.config.activation_checkpointing)  # true is 1, false 0
        if self.training and bernoulli(layer.config.layer_drop):
            return layer.skip(hidden)
        if self.training and every and number % every == 0:
            return checkpoint(layer, hidden, *context, use_reentrant=False)
        return layer(hidden, *context)

    def _check_memory(self, memory: Tensor | None) -> None:
        width = self.config.memory_width
        if memory is not None and memory.shape[2] != width:
            raise ValueError(f"memory has {memory.shape[2]} features an entry, memory_width is {width}")
