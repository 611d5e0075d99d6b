"""Mean and variance of a sample that may not fit into memory."""

from functools import reduce

import numpy as np

from mert_foundry.pipeline.fitting.codebook import BATCH_FRAMES
from mert_foundry.pipeline.fitting.sample import batches
from mert_foundry.pipeline.shards.statistics import mean_and_variance, measure_values, merge_values


def moments(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance by column of frames `[frames, size]`, float64 `[size]` each."""
    return mean_and_variance(reduce(merge_values, map(measure_values, batches(sample, BATCH_FRAMES))))
