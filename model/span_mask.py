"""Span masks over frames, as fairseq draws them for HuBERT and MERT (static length, overlap allowed).

Two differences from fairseq: each row is drawn alone (fairseq trims all rows of a batch to the fewest masked
frames, which makes a row depend on its neighbours), and the last frame can be masked too.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from model.seeding import derive_seed


class MaskConfig(BaseModel):
    """How frames are masked; the defaults are MERT's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: float = Field(0.8, gt=0.0, le=1.0, description="masked share of frames if no spans overlapped")
    span: int = Field(5, ge=1, description="length of a masked span, frames")
    min_spans: int = Field(2, ge=1, description="least number of spans in a row")


def draw_masks(config: MaskConfig, seed: int, step: int, keys: Sequence[str], valid: np.ndarray) -> np.ndarray:
    """Masks [B, F] bool for the rows named by `keys`, each a pure function of (seed, step, key) and its valid frames.

    `valid` is [B, F] bool; only valid frames are masked, and every row with one gets at least one masked frame.
    """
    masks = np.zeros(valid.shape, dtype=bool)
    for row, key in enumerate(keys):
        generator = np.random.default_rng(derive_seed(seed, step, "mask", key))
        frames = np.flatnonzero(valid[row])
        masks[row, frames] = draw_mask(config, len(frames), generator)
    return masks


def draw_mask(config: MaskConfig, num_frames: int, generator: np.random.Generator) -> np.ndarray:
    """One mask [num_frames] bool: int(probability * num_frames / span + uniform) spans at distinct starts."""
    mask = np.zeros(num_frames, dtype=bool)
    num_spans = int(config.probability * num_frames / config.span + generator.random())
    num_starts = max(num_frames - config.span + 1, 1)
    num_spans = min(max(num_spans, config.min_spans), num_starts)
    starts = generator.choice(num_starts, num_spans, replace=False)
    for start in starts:
        mask[start : start + config.span] = True
    return mask
