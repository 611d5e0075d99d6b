import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.span_mask import MaskConfig, draw_mask, draw_masks


def masked_share(config: MaskConfig, frames: int) -> np.ndarray:
    """Probability of each frame being masked, from counting: starts that cover it, drawn without replacement."""
    starts = frames - config.span + 1
    mean = config.probability * frames / config.span
    covering = [min(i, starts - 1) - max(0, i - config.span + 1) + 1 for i in range(frames)]

    def share(spans: int) -> np.ndarray:
        return np.array([1 - math.comb(starts - cover, spans) / math.comb(starts, spans) for cover in covering])

    low = int(mean)
    return (low + 1 - mean) * share(low) + (mean - low) * share(low + 1)


@pytest.mark.parametrize("frames", [374, 61])
def test_masked_share_of_each_frame_is_the_expected_one(frames):
    config, draws = MaskConfig(), 4_000
    keys = [str(i) for i in range(draws)]
    masks = draw_masks(config, 7, 1, keys, np.ones((draws, frames), dtype=bool))
    expected = masked_share(config, frames)
    assert masks.mean() == pytest.approx(expected.mean(), abs=0.003)
    error = np.abs(masks.mean(0) - expected)
    assert error.max() < 5 * 0.5 / math.sqrt(draws)


@settings(max_examples=100, deadline=None)
@given(
    frames=st.integers(1, 80),
    probability=st.floats(0.01, 1.0),
    span=st.integers(1, 12),
    min_spans=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_mask_is_made_of_whole_spans(frames, probability, span, min_spans, seed):
    config = MaskConfig(probability=probability, span=span, min_spans=min_spans)
    mask = draw_mask(config, frames, np.random.default_rng(seed))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    runs = edges[1::2] - edges[::2]
    assert len(runs) and all(run >= min(span, frames) for run in runs)
    assert mask.sum() >= min(min_spans, max(frames - span + 1, 1)) + min(span, frames) - 1
    assert mask.sum() <= span * max(min_spans, math.ceil(probability * frames / span))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=6, unique=True), st.integers(0, 99), st.integers(0, 10**6))
def test_a_row_depends_on_seed_step_and_key_alone(keys, seed, step):
    valid = np.ones((len(keys), 60), dtype=bool)
    together = draw_masks(MaskConfig(), seed, step, keys, valid)
    for row, key in enumerate(keys):
        assert np.array_equal(draw_masks(MaskConfig(), seed, step, [key], valid[:1])[0], together[row])
    assert not np.array_equal(draw_masks(MaskConfig(), seed, step + 1, keys, valid), together)
    assert not np.array_equal(draw_masks(MaskConfig(), seed + 1, step, keys, valid), together)


def test_keys_get_different_masks():
    masks = draw_masks(MaskConfig(), 0, 0, [str(i) for i in range(100)], np.ones((100, 100), dtype=bool))
    assert len({mask.tobytes() for mask in masks}) == 100


def test_masks_do_not_change_between_versions():
    mask = draw_masks(MaskConfig(), 3, 14, ["track/0"], np.ones((1, 20), dtype=bool))[0]
    assert "".join("x" if masked else "." for masked in mask) == "xxxxx.....xxxxxxxxxx"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_only_valid_frames_are_masked(valid):
    valid = np.array([valid])
    mask = draw_masks(MaskConfig(), 0, 0, ["key"], valid)
    assert not (mask & ~valid).any()
    assert mask.any() == valid.any()
