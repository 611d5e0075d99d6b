"""Losses as sums; who knows the counts of all ranks and micro-batches divides. S is the number of frames."""

from torch import Tensor, nn


def code_cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy of logits [K, S, V] with codes [S, K], summed over codebooks and frames, in fp32: scalar."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), codes.T.flatten(), reduction="sum")


def correct_codes(logits: Tensor, codes: Tensor) -> Tensor:
    """Frames whose most likely code is the right one, per codebook: logits [K, S, V], codes [S, K] -> [K]."""
    return (logits.argmax(2) == codes.T).sum(1)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of [S, bins], mean over bins and summed over frames, in fp32: scalar."""
    return (prediction.float() - target.float()).square().mean(1).sum()


def feature_energy(features: Tensor, valid: Tensor) -> Tensor:
    """Mean square over channels of features [B, F, C], summed over frames where valid [B, F], in fp32: scalar."""
    return (features.float().square().mean(2) * valid).sum()
