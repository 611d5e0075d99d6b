"""The first weights of everything in the encoder; the whole initialisation is described here.

embeddings of tokens     normal, standard deviation 0.02
linear maps              normal, standard deviation 0.02 (BERT); biases 0
  DeepNorm and Sub-LN    in each layer Xavier normal instead: query and key with gain 1; value, output, convolution's
                         maps and feed-forward with the gain of model/transformer/norm.py
norms                    weight 1, bias 0
convolutions             Kaiming normal; biases 0
positional convolution   normal, standard deviation sqrt(4 / (kernel * D)), which its weight-norm gain makes exact; bias
                         0
per-head temperature     1, as its logarithm 0
per-head gate            1
gate of a memory         0
mask embedding           uniform in [0, 1), by MertEncoder.initialise
"""

import math

import torch
from torch import nn

from mert_foundry.model.transformer.attention import MultiheadAttentionExtend
from mert_foundry.model.transformer.cross_attention import MemoryReader
from mert_foundry.model.transformer.layer import TransformerLayer
from mert_foundry.model.transformer.position import PositionalConvolution


@torch.no_grad()
def initialise(root: nn.Module) -> None:
    """Draw all weights within a module afresh, as described above.

    On the meta device, where there are none, nothing happens.
    """
    if any(weight.is_meta for weight in root.parameters()):  # torch would take a second to import what draws them there
        return
    modules = list(root.modules())
    positional = {id(module.conv) for module in modules if isinstance(module, PositionalConvolution)}
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
            if (bias := getattr(module, "bias", None)) is not None:
                nn.init.zeros_(bias)
        elif isinstance(module, nn.Conv1d):
            _initialise_convolution(module, id(module) in positional)
        elif isinstance(module, MultiheadAttentionExtend):
            _initialise_options(module)
        elif isinstance(module, MemoryReader):
            nn.init.zeros_(module.gate)
    for module in modules:
        if isinstance(module, TransformerLayer) and module.placement.gain is not None:
            _initialise_scaled(module, module.placement.gain)


def _initialise_convolution(conv: nn.Conv1d, positional: bool) -> None:
    if positional:
        std = math.sqrt(4.0 / (conv.kernel_size[0] * conv.out_channels))
        conv.weight = torch.empty_like(conv.weight).normal_(std=std)  # the parametrisation splits it
    else:
        nn.init.kaiming_normal_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _initialise_options(attention: MultiheadAttentionExtend) -> None:
    if attention.log_temperature is not None:
        nn.init.zeros_(attention.log_temperature)
    if attention.gate is not None:
        nn.init.ones_(attention.gate)


def _initialise_scaled(layer: TransformerLayer, gain: float) -> None:
    attention = layer.attention
    for projection in (attention.query, attention.key):
        nn.init.xavier_normal_(projection.weight)
    feed_forward = [module for module in layer.feed_forward.modules() if isinstance(module, nn.Linear)]
    convolution = [layer.convolution.inner, layer.convolution.outer] if layer.convolution is not None else []
    scaled: list[nn.Linear] = [attention.value, attention.out, *convolution, *feed_forward]
    for linear in scaled:
        nn.init.xavier_normal_(linear.weight, gain=gain)
