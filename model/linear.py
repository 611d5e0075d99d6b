"""A linear map whose fp32 products on the CPU go through oneDNN.

torch sends them to MKL, which on AMD processors leaves half of the machine unused: 748 x 768 times 768 x 3072 on one
EPYC core takes 37 ms there and 17 ms with oneDNN, and as long for either gradient. torch's own compiler calls the same
operator (`torch.ops.mkldnn._linear_pointwise`) when it freezes a model; the pinned torch has it, with no gradient. A
torch without it falls back to nn.Linear's own product. Second derivatives and functorch are not supported.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """nn.Linear with the same weights; elsewhere than in fp32 on the CPU it is nn.Linear itself."""

    def forward(self, features: Tensor) -> Tensor:
        return (
            _OneDnnLinear.apply(features, self.weight, self.bias) if self._fits(features) else super().forward(features)
        )

    def _fits(self, features: Tensor) -> bool:
        return (
            features.dim() > 1
            and features.shape[-1] == self.in_features
            and not torch.is_autocast_enabled("cpu")
            and _goes_through_onednn(features, self.weight)
        )


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(features, weight)
        return _product(features, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        features, weight = context.saved_tensors
        rows = gradient.flatten(0, -2)
        to_features, to_weight, to_bias = context.needs_input_grad
        return (
            _product(gradient, weight.t()) if to_features else None,
            _product(rows.t(), features.flatten(0, -2).t()) if to_weight else None,
            rows.sum(0) if to_bias else None,
        )


def _product(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """features [..., K] times weight [N, K] transposed, plus bias [N] -> [..., N]"""
    return torch.ops.mkldnn._linear_pointwise(features, weight, bias, "none", [], "")


def matrix_product(features: Tensor, weight: Tensor) -> Tensor:
    """features [M, K] times weight [N, K] transposed -> [M, N], by the same library; no gradient of it is recorded."""
    if _goes_through_onednn(features, weight):
        return _product(_dense(features), _dense(weight))
    return torch.mm(features, weight.t())


def add_product(total: Tensor, features: Tensor, weight: Tensor) -> None:
    """Adds the product of `matrix_product` to `total` [M, N], in place."""
    if _goes_through_onednn(features, weight):
        total.add_(_product(_dense(features), _dense(weight)))
    else:
        total.addmm_(features, weight.t())


def _dense(matrix: Tensor) -> Tensor:
    """The matrix without gaps: oneDNN is a thousand times as slow where only some columns of a matrix are taken."""
    return matrix.t().contiguous().t() if matrix.stride(0) == 1 else matrix.contiguous()


def _goes_through_onednn(features: Tensor, weight: Tensor) -> bool:
    return (
        features.device.type == "cpu"
        and features.dtype == weight.dtype == torch.float32
        and features.numel() > 0
        and HAS_ONEDNN_LINEAR
        and not torch.compiler.is_compiling()
    )
