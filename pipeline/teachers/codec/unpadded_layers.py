"""The causal convolutions of the `encodec` package on the same weights, without its padding and its weight norm."""

import warnings

from encodec.modules import SConv1d
from encodec.modules.seanet import SEANetResnetBlock
from torch import Tensor, nn


class Residual(nn.Module):
    """A residual block without padding: `branch` sees `left_context` inputs before each of its outputs."""

    def __init__(self, shortcut: nn.Module, branch: nn.Module, left_context: int):
        super().__init__()
        self.shortcut, self.branch, self.left_context = shortcut, branch, left_context

    def forward(self, inputs: Tensor) -> Tensor:
        return self.shortcut(inputs)[..., self.left_context :] + self.branch(inputs)


def without_padding(layers: nn.Module) -> nn.Module:
    """The same layers on the same weights, of convolutions that do not pad."""
    if isinstance(layers, SConv1d):
        return layers.conv.conv
    if isinstance(layers, SEANetResnetBlock):
        return Residual(without_padding(layers.shortcut), without_padding(layers.block), left_context(layers.block))
    if isinstance(layers, nn.Sequential):
        return nn.Sequential(*map(without_padding, layers))
    return layers


def left_context(layers: nn.Module) -> int:
    """How many input samples before a frame's own the causal convolutions of `layers` see.

    Each convolution sees (kernel - 1) * dilation - (stride - 1) of its own inputs before those of the frame. The
    shortcut of a residual block has kernel 1 and sees none of them, so the blocks' convolutions count as if they stood
    in line.
    """
    context, jump = 0, 1
    for module in layers.modules():
        if isinstance(module, SConv1d):
            convolution = module.conv.conv
            assert isinstance(convolution, nn.Conv1d)
            stride = convolution.stride[0]
            context += ((convolution.kernel_size[0] - 1) * convolution.dilation[0] - (stride - 1)) * jump
            jump *= stride
    return context


def fold_weight_norm(encoder: nn.Module) -> None:
    """Replace each normalised weight by its value, which the package would compute anew in every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # encodec 0.1.1 uses the older weight norm
        for module in encoder.modules():
            if isinstance(module, nn.Conv1d) and hasattr(module, "weight_g"):
                nn.utils.remove_weight_norm(module)
