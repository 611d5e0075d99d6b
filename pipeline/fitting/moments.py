"""Mean and standard deviation of a sample that may not fit into memory."""

import numpy as np

from mert_foundry.pipeline.fitting.codebook import BATCH_FRAMES
from mert_foundry.pipeline.fitting.sample import batches

LEAST_DEVIATION = 1e-3  # of the largest: what hardly changes is not blown up


def moments(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by column, float32 `[size]` each; no deviation is 0."""
    size = sample.shape[1]
    total, squares = np.zeros(size), np.zeros(size)
    for part in batches(sample, BATCH_FRAMES):
        total += part.sum(axis=0, dtype=np.float64)
        squares += np.square(part, dtype=np.float64).sum(axis=0)
    mean = total / len(sample)
    deviation = np.sqrt(np.maximum(squares / len(sample) - np.square(mean), 0))
    least = LEAST_DEVIATION * deviation.max() or 1.0  # of frames that are all the same
    return mean.astype(np.float32), np.maximum(deviation, least).astype(np.float32)
