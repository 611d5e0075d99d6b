"""A strided convolution over frames as matrix products, without copying windows.

Frames of C channels lie one after another, so `stride` frames side by side are one row of a matrix [N, stride * C] that
is there already. A kernel covers one such row and the beginning of the next ones: for 3 taps at stride 2,

    output[n] = row[n] @ taps_0_and_1 + (first half of row[n + 1]) @ tap_2

Convolution libraries transpose input and output around such a product, or use small ones.
"""

from typing import Any

import torch
from torch import Tensor

from mert_foundry.model.autocast import autocast_dtype
from mert_foundry.model.linear import add_product, matrix_product


def strided_convolution(frames: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Frames [M, C], convolved with weight [D, C, K] -> [M / stride, D]; M is a multiple of `stride`.

    Output n sees the K frames from n * stride on; behind the last frame there is zero. Under autocast the product and
    its result have autocast's type.
    """
    rows = frames.reshape(-1, stride * frames.shape[1])
    parts = [weight[:, :, first : first + stride] for first in range(0, weight.shape[2], stride)]
    dtype = autocast_dtype(frames.device)
    if dtype is not None:
        rows, parts = rows.to(dtype), [part.to(dtype) for part in parts]
    return _SumOfProducts.apply(rows, *(part.transpose(1, 2).flatten(1) for part in parts))


class _SumOfProducts(torch.autograd.Function):
    """Rows [N, S] and parts of a kernel [D, S_j], S_j <= S -> [N, D], the sum over j of row[n + j, :S_j] @ part_j.T"""

    @staticmethod
    def forward(context: Any, rows: Tensor, *parts: Tensor) -> Tensor:
        context.save_for_backward(rows, *parts)
        (own, first), *later = _beside(rows, parts)
        output = matrix_product(own, first)
        for seen, part in later:
            add_product(output[: len(seen)], seen, part)
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, *parts = context.saved_tensors
        to_rows, *to_parts = context.needs_input_grad
        of_rows = _gradient_of_rows(rows, parts, gradient) if to_rows else None
        of_parts = [
            matrix_product(gradient[: len(seen)].t(), seen.t()) if needed else None
            for needed, (seen, _) in zip(to_parts, _beside(rows, parts))
        ]
        return of_rows, *of_parts


def _beside(rows: Tensor, parts: tuple[Tensor, ...] | list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What each part of a kernel sees: part j the rows from j on."""
    return [(rows[j:, : part.shape[1]], part) for j, part in enumerate(parts)]


def _gradient_of_rows(rows: Tensor, parts: list[Tensor], gradient: Tensor) -> Tensor:
    whole = parts[0].shape[1] == rows.shape[1]  # not where a kernel is shorter than its stride
    found = matrix_product(gradient, parts[0].t()) if whole else torch.zeros_like(rows)
    for seen, part in _beside(found, parts)[1 if whole else 0 :]:
        add_product(seen, gradient[: len(seen)], part.t())
    return found
