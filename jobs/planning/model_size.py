"""A model's bytes without a GPU and without its memory: weights on the meta device, activations from
fake CUDA tensors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from mert_foundry.model.encoder import EncoderConfig
from mert_foundry.model.objective.heads import HeadSpec, code_cross_entropy, feature_energy, squared_error
from mert_foundry.model.objective.pretrain_model import ObjectiveConfig, PretrainModel
from mert_foundry.model.objective.span_mask import MaskConfig, draw_masks

MASK_ROWS = 256  # rows over which the masked share is averaged
STEP_BYTES = 4  # AdamW's count of steps, of each parameter


@dataclass(frozen=True)
class ModelSize:
    """Counts of a model: parameters, of them the encoder's, those of a layer (a mean), and those that are trained (and
    their tensors); bytes of the weights.
    """

    parameters: int
    layer_parameters: int
    encoder_parameters: int
    trained: int
    trained_tensors: int
    weight_bytes: int

    @property
    def moment_bytes(self) -> int:
        """AdamW's two moments in fp32, and its step counts."""
        return 8 * self.trained + STEP_BYTES * self.trained_tensors


def build_on_meta(encoder: EncoderConfig, heads: Sequence[HeadSpec], objective: ObjectiveConfig) -> PretrainModel:
    """The model without any weight's memory."""
    with torch.device("meta"):
        return PretrainModel(encoder, heads, objective)


def measure_model(encoder: EncoderConfig, heads: Sequence[HeadSpec], objective: ObjectiveConfig) -> ModelSize:
    """Count a model that is built on the meta device."""
    model = build_on_meta(encoder, heads, objective)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layer_parameters=sum(parameter.numel() for parameter in model.encoder.transformer.layers.parameters())
        // encoder.transformer.layers,
        encoder_parameters=sum(parameter.numel() for parameter in model.encoder.parameters()),
        trained=sum(parameter.numel() for parameter in trained),
        trained_tensors=len(trained),
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in model.state_dict().values()),
    )


def masked_share(mask: MaskConfig, frames: int) -> float:
    """Mean share of `frames` whole frames that are masked, over rows drawn with seed 0; `mask` is in frames."""
    keys = [str(row) for row in range(MASK_ROWS)]
    return float(draw_masks(mask, 0, 1, keys, np.ones((MASK_ROWS, frames), dtype=bool)).mean())


def measure_activations(
    encoder: EncoderConfig,
    heads: Sequence[HeadSpec],
    objective: ObjectiveConfig,
    mask: MaskConfig,
    rows: int,
    samples: int,
    bf16: bool,
) -> int:
    """Bytes that the forward pass of `rows` crops of `samples` samples keeps for the backward pass on a GPU.

    A layer that is computed again in the backward pass keeps its input alone; those of one layer at a time are added,
    since that one is computed again while the others' inputs are there. What layers keep is the difference that one
    more layer makes.
    """
    every = int(encoder.transformer.activation_checkpointing)

    def kept(layers: int) -> int:
        changes = {"layers": layers, "activation_checkpointing": False}
        transformer = encoder.transformer.model_copy(update=changes)
        changed = encoder.model_copy(update={"transformer": transformer})
        return _measure_kept(changed, heads, objective, mask, rows, samples, bf16)

    if not every:
        return kept(encoder.transformer.layers)
    one = kept(1)
    of_a_layer = kept(2) - one
    layers = encoder.transformer.layers
    again = layers // every
    inputs = 4 * rows * (samples // encoder.frontend.hop) * encoder.transformer.width  # at most fp32
    return one + (layers - again - 1) * of_a_layer + again * inputs + of_a_layer


def _measure_kept(
    encoder: EncoderConfig,
    heads: Sequence[HeadSpec],
    objective: ObjectiveConfig,
    mask: MaskConfig,
    rows: int,
    samples: int,
    bf16: bool,
) -> int:
    """What the forward pass of a model that computes nothing again keeps.

    Every storage that autograd saves counts once, but for the fp32 weights; copies of weights in bf16 count. Nothing is
    computed: tensors are fake, with the shapes, types and kernels that CUDA would have. Layer drop is off, as on its
    largest step.
    """
    transformer = encoder.transformer.model_copy(update={"layer_drop": 0.0})
    encoder = encoder.model_copy(update={"transformer": transformer})
    saved: dict[int, tuple[int, torch.UntypedStorage]] = {}  # the storage stays, so that no other gets its address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = (storage.nbytes(), storage)
        return tensor

    with _bf16_on_cuda(bf16), FakeTensorMode(), _FlashAttention():
        with torch.device("cuda"):
            model = PretrainModel(encoder, heads, objective)
            audio = torch.empty(rows, samples)
            frames = model.encoder.num_frames(samples)
            predicted = torch.ones(rows, frames, dtype=torch.bool)
        if not encoder.frontend.learned_width:
            # Nothing of it is kept for a backward pass, and its filters cannot be made of fake tensors.
            model.encoder.add_module("frontend", _Features(frames, encoder.frontend.width))
        count = rows * frames if objective.unmasked_weight else round(rows * frames * masked_share(mask, frames))
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            encoded = model.encoder(audio, mask=predicted)
            loss = _loss(model, encoded.last.flatten(0, 1)[:count])
            if encoder.frontend.learned_width:
                loss = loss + feature_energy(
                    encoded.frontend_features[..., : encoder.frontend.learned_width], predicted
                )
        return sum(size for key, (size, _) in saved.items() if key not in weights)


def _loss(model: PretrainModel, frames: Tensor) -> Tensor:
    """The loss of all heads over so many frames [S, D]; which frames they are changes no size."""
    total = frames.new_zeros(())
    for spec in model.head_specs:
        head = model.heads[spec.name]
        if spec.kind == "continuous":
            total = total + squared_error(head(frames), frames.new_empty(len(frames), spec.predicted))
            continue
        used = model.objective.codebooks_per_step
        logits = head(frames, None if used is None else list(range(used)))
        codes = torch.zeros(len(frames), len(logits), dtype=torch.int64, device=frames.device)
        total = total + code_cross_entropy(logits, codes)
    return total


class _Features(nn.Module):
    """In place of a front-end without weights: features of its shape."""

    def __init__(self, frames: int, width: int):
        super().__init__()
        self.frames, self.width = frames, width

    def forward(self, audio: Tensor) -> Tensor:
        """[B, T] -> [B, F, C]"""
        return audio.new_empty(len(audio), self.frames, self.width)


class _FlashAttention(TorchFunctionMode):
    """The fused attention that CUDA takes; of fake tensors torch would take the plain one, which keeps whole attention
    maps.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args
        dropout = kwargs.get("dropout_p", 0.0)
        if query.dtype == torch.bfloat16:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout)[0]
        # In fp32 CUDA takes the memory-efficient one; its arguments: bias, whether to keep the row sums for the
        # backward pass.
        attend = torch.ops.aten._scaled_dot_product_efficient_attention
        return attend(query, key, value, None, True, dropout)[0]


@contextmanager
def _bf16_on_cuda(enabled: bool) -> Iterator[None]:
    """Autocast as on a GPU; `torch.autocast` refuses where there is none, but fake tensors need none."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()
