"""Operations of a training step, counted from the shapes of a model: what the model needs, whatever computes it.

Multiplications and additions of matrix products and convolutions. A forward pass counts once, and each of its
gradients, to the inputs and to the weights, once more where something learns from it. What activation checkpointing or
a fused attention computes again is not the model's, nor are zeros that fill a tile. Norms, activations and Fourier
transforms are left out, as torch's FlopCounterMode leaves them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from mert_foundry.model.layer_operations import layer_operations
from mert_foundry.model.objective.heads import CodeHead, RegressionHead
from mert_foundry.model.objective.pretrain_model import PretrainModel
from mert_foundry.model.transformer.attention import MultiheadAttentionExtend
from mert_foundry.model.transformer.cross_attention import MemoryReader
from mert_foundry.model.transformer.layer import TransformerLayer
from mert_foundry.model.transformer.transformer import TransformerEncoderExtend


@dataclass(frozen=True)
class StepOperations:
    """Operations of a training step, of each row and of each frame that is predicted."""

    of_row: float
    of_predicted_frame: float

    def __call__(self, rows: float, predicted_frames: float) -> float:
        """Those of a batch."""
        return rows * self.of_row + predicted_frames * self.of_predicted_frame


def count_operations(model: PretrainModel, length: int) -> StepOperations:
    """For rows of `length` samples, or tokens. The weights may be on the meta device, or sharded.

    A layer that is dropped now and then counts by its share of steps; readers of a memory are left out, as without one.
    """
    encoder = model.encoder
    frames = encoder.num_frames(length)
    row = encoder.frontend.operations(length)
    # Before the projection the front-end learns, or at least the norm of its features.
    learns_before = encoder.config.frontend.learned_width > 0 or encoder.config.input_norm == "layer"
    row += _linear(encoder.projection.linear, inputs_learn=learns_before) * frames
    row += _transformer(encoder.transformer, frames)
    return StepOperations(row, sum(_head(model, head) for head in model.heads.values()))


def _transformer(transformer: TransformerEncoderExtend, frames: int) -> float:
    total = 0.0
    for module in transformer.position.modules():
        if isinstance(module, nn.Conv1d):
            total += _convolution(module) * frames
    for layer in transformer.layers:
        assert isinstance(layer, TransformerLayer)
        total += _layer(layer, frames) * (1.0 - layer.config.layer_drop)
    return total


def _layer(layer: TransformerLayer, frames: int) -> float:
    total = 0.0
    for module in _modules_without_memory(layer):
        if isinstance(module, nn.Linear):
            total += _linear(module) * frames
        elif isinstance(module, nn.Conv1d):
            total += _convolution(module) * frames
        elif isinstance(module, MultiheadAttentionExtend):
            # Queries with keys and weights with values; both factors of either product learn.
            total += layer_operations(2 * frames**2 * module.query.out_features, True, True)
    return total


def _modules_without_memory(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    for child in module.children():
        if not isinstance(child, MemoryReader):
            yield from _modules_without_memory(child)


def _linear(linear: nn.Linear, inputs_learn: bool = True) -> float:
    """Of one frame."""
    return layer_operations(linear.in_features * linear.out_features, inputs_learn, linear.weight.requires_grad)


def _convolution(convolution: nn.Conv1d) -> float:
    """Of one frame of output."""
    products = convolution.out_channels * convolution.in_channels // convolution.groups * convolution.kernel_size[0]
    learns = any(parameter.requires_grad for parameter in convolution.parameters())
    return layer_operations(products, True, learns)


def _head(model: PretrainModel, head: nn.Module) -> float:
    """Of one predicted frame."""
    if isinstance(head, RegressionHead):
        return _linear(head.linear)
    assert isinstance(head, CodeHead)
    used = (model.objective.codebooks_per_step or head.codebooks) / head.codebooks
    projection = _linear(head.projection) * (1.0 if head.tied_projection else used)
    return projection + layer_operations(head.embedding.numel(), True, True) * used
