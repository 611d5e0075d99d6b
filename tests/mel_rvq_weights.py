"""Weights of a Mel-RVQ teacher that code something: drawn by a seed, not fitted."""

import numpy as np

SIZE = 384  # three frames of 128 bands


def random_weights(codebooks: int, entries: int, dimensions: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Orthonormal directions and codebooks that become finer; mean and deviation of music in decibels."""
    random = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(random.standard_normal((SIZE, dimensions)))
    finer = 2.0 / 2.0 ** np.arange(codebooks)[:, None, None]
    weights = {
        "mean": np.full(SIZE, -10.0),
        "deviation": np.full(SIZE, 5.0),
        "projection": directions,
        "codebooks": finer * random.standard_normal((codebooks, entries, dimensions)),
    }
    return {name: array.astype(np.float32) for name, array in weights.items()}
